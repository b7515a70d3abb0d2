"""Words of nano's training captions."""

import pytest

from lumina_cli.core.nano.captions import all_captions
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.nano.vocabulary import find_unseen_words


@pytest.mark.parametrize(
    ("text", "unseen"),
    [
        ("a red ball left of two blue cups", []),
        ("An Astronaut, riding a red CAR; the astronaut", ["astronaut", "riding"]),
        ("ein roter Würfel, красный шар, 一个红色的球", []),
        ("a sand-coloured backdrop, 3 cozy houses", ["cozy"]),
        ("12345", []),
    ],
)
def test_unseen_words(text, unseen):
    assert find_unseen_words(text) == unseen


def test_captions_of_other_scenes_have_few_unseen_words():
    texts = [all_captions(draw_scene(7, index))["en"]["detailed"] for index in range(50)]
    assert sum(bool(find_unseen_words(text)) for text in texts) == 0

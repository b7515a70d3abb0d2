"""Forms of answers: sentences instead of tags, tags instead of sentences, and reports with labels are rejected."""

import json

import pytest
from local_endpoint import Endpoint, said
from PIL import Image

from lumina_cli.core.nano.captions import all_captions
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.unicap.checks.rules import check_caption
from lumina_cli.core.unicap.checks.unwrap import unwrap

# (language, answer): rejected as tags.
SENTENCES = [
    ("en", "A red car on a hill in the evening."),
    ("en", "A red car stands on a hill, with trees, in the evening."),
    ("en", "A dog runs."),
    ("en", "Red car on a hill. Trees behind it."),
    ("en", "There are two dogs on the lawn"),
    ("en", "A red car parked on a hill, trees in the background, evening light"),
    ("en", "Two dogs play on a lawn, and a child watches them from the fence"),
    ("de", "Ein rotes Auto steht auf einem Hügel."),
    ("fr", "Une voiture rouge sur une colline le soir."),
    ("es", "Un coche rojo en una colina al atardecer."),
    ("ru", "Красная машина стоит на холме вечером."),
    ("zh", "一辆红色的汽车停在山坡上。"),
    ("ja", "丘の上に赤い車が止まっています。"),
]

# (language, answer): accepted as tags.
TAGS = [
    ("en", "car, hill, evening"),
    ("en", "red car"),
    ("en", "a red car"),
    ("en", "woman in red dress, rain"),
    ("en", "sunset over mountains"),
    ("en", "1girl solo long_hair smile"),
    ("en", "St. Bernard, U.S. flag, Snow"),
    ("en", 'sign that reads "Stop. Go now", street, car'),
    ("en", "photo, street, standing at a desk, looking at viewer"),
    ("en", "car, hill, trees and bushes, and clouds"),
    ("de", "rotes Auto, Hügel, Abend"),
    ("ru", "красная машина, холм, вечер"),
    ("zh", "红色汽车，山坡，傍晚，云"),
    ("ja", "赤い車、丘、夕方"),
]

# (language, answer): rejected as a sentence.
LISTS = [
    ("en", "car, hill, evening"),
    ("en", "red car, hill, evening light, soft shadows"),
    ("en", "masterpiece, best quality, 1girl, solo, long hair"),
    ("en", "1girl solo long_hair blue_eyes looking_at_viewer"),
    ("en", "- red car\n- hill\n- evening light"),
    ("en", "red car\nhill\nevening light"),
    ("de", "Auto, Hügel, Abend, Himmel"),
    ("ru", "машина, холм, вечер, небо, облака"),
    ("zh", "汽车，山坡，傍晚，天空，云朵，道路"),
    ("ja", "車、丘、夕方、空、雲、道"),
]

# (language, answer): accepted as short.
CAPTIONS = [
    ("en", "Red apples, green grapes and oranges"),
    ("en", "A cat, a dog, and a mouse"),
    ("en", "Two dogs, one black, one white, run on a beach"),
    ("en", "Paris, France"),
    ("en", "A red car on a hill, trees, evening light"),
    ("en", "Steak, chips and peas on a plate"),
    ("en", "A screen with the lines\nName\nAge\nCity"),
    ("ru", "белый дом, красный шар, мятный фон"),
    ("zh", "绿色圆锥体，橙色圆柱体，棕色汽车"),
]

# Reports with labels, which are not captions of any level.
REPORTS = [
    "Here's a breakdown of the image:\n\n**Subject:** A red car\n\n**Setting:** A hill in the evening",
    "Subject: a red car\nBackground: a hill\nMood: calm",
    "- **Style:** photograph\n- **Main objects:** car, hill\n- **Lighting:** soft",
    "**Composition**: centred car. **Colors**: red and green.",
    "主体：一辆红色的汽车\n背景：傍晚的山坡",
    "Motiv: ein rotes Auto\nHintergrund: ein Hügel am Abend",
]
LANGS_OF_REPORTS = ("en", "en", "en", "en", "zh", "de")


def checked(text: str, level: str, lang: str):
    return check_caption(unwrap(text, level, lang), level, lang)


@pytest.mark.parametrize(("lang", "text"), SENTENCES)
def test_a_sentence_is_not_tags(lang, text):
    found = checked(text, "tags", lang)
    assert found is not None
    assert (found.code, found.startswith("a sentence, not tags")) == ("sentence", True)


@pytest.mark.parametrize(("lang", "text"), TAGS)
def test_tags_are_accepted(lang, text):
    assert checked(text, "tags", lang) is None


@pytest.mark.parametrize("level", ["short", "medium", "detailed"])
@pytest.mark.parametrize(("lang", "text"), LISTS)
def test_a_list_of_tags_is_not_a_sentence(lang, text, level):
    found = checked(text, level, lang)
    assert found is not None
    assert found.code == "tags" or (found.code, level) in {("too short", "medium"), ("too short", "detailed")}


@pytest.mark.parametrize(("lang", "text"), CAPTIONS)
def test_sentences_with_commas_are_accepted(lang, text):
    assert checked(text, "short", lang) is None


@pytest.mark.parametrize("level", ["short", "medium", "tags"])
@pytest.mark.parametrize(("lang", "text"), list(zip(LANGS_OF_REPORTS, REPORTS, strict=True)))
def test_a_report_with_labels_is_not_a_caption(lang, text, level):
    found = checked(text, level, lang)
    assert found is not None
    assert found.code in ("labels", "boilerplate")


@pytest.mark.parametrize(
    "text",
    [
        'A form with the lines "Subject: maths" and "Style: neat" on a desk',
        "A poster on a wall. Details: none are visible",
        "A label that reads Style: modern, Colors: blue",
    ],
)
def test_a_caption_with_a_label_is_accepted(text):
    assert checked(text, "medium", "en") is None


def test_the_instruction_of_a_user_decides_on_the_form():
    assert check_caption("car, hill, evening", "short", "en", own=True) is None
    assert check_caption("A red car on a hill in the evening.", "tags", "en", own=True) is None


def test_captions_of_nano_have_the_form_of_their_levels():
    for index in range(100):
        for lang, levels in all_captions(draw_scene(8, index), index).items():
            for level, text in levels.items():
                found = check_caption(text, level, lang)
                assert found is None or found.code == "too short", text  # "шар"


def test_an_answer_of_another_form_is_asked_again(lumina, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    asked = []
    replies = [
        "car, hill, evening",
        "A red car on a hill",
        "A red car stands on a hill.",
        "car, hill, evening",
    ]

    def reply(_, request):
        asked.append(json.dumps(request))
        return 200, said(replies[len(asked) - 1])

    endpoint = Endpoint(reply)
    words = ("--engine", "openai", "--endpoint", endpoint.url, "--retries", 1)
    try:
        for level in ("short", "tags"):
            code, _, _ = lumina(tmp_path, *words, "--levels", level, "--out", tmp_path / f"{level}.jsonl")
            assert code == 0
    finally:
        endpoint.close()
    rows = [json.loads((tmp_path / f"{level}.jsonl").read_text()) for level in ("short", "tags")]
    assert [row["captions"]["en"] for row in rows] == [{"short": replies[1]}, {"tags": replies[3]}]
    assert "not a list of tags" in asked[1]
    assert "only tags, separated by commas" in asked[3]

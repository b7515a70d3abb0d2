"""Parsing captions of nano scenes: complete and exact facts, and scores that separate true from false."""

from dataclasses import replace

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.truth import ASPECTS, score_captions
from lumina_cli.core.nano.caption_parser import facts_of, main_relations, parse_caption
from lumina_cli.core.nano.captions import LANGUAGES, LEVELS, Style, describe_scene
from lumina_cli.core.nano.scene import INVERSE, Scene, Thing, draw_scene

WHOLE = Style(photo=0.3, tintless=0, tintless_photo=0, stated=1, sizes=True, rendered=0.5)
STYLES = dict.fromkeys(("detailed", "medium", "short"), WHOLE)
SCENES = [draw_scene(9, index) for index in range(80)]
KINDS = [(lang, level) for lang in LANGUAGES for level in LEVELS]


def told(scene: Scene, lang: str, level: str, seed: int = 0) -> str:
    return describe_scene(scene, lang, level, seed, STYLES)


@pytest.mark.parametrize(("lang", "level"), KINDS)
def test_a_caption_parses_to_the_facts_of_its_scene(lang, level):
    for number, scene in enumerate(SCENES):
        caption = told(scene, lang, level, number)
        found, true = parse_caption(caption, lang), facts_of(scene)
        assert (found.kinds, found.tints, found.counts) == (true.kinds, true.tints, true.counts), caption
        assert main_relations(scene, level) <= found.relations <= true.relations, caption
        assert found.backdrop == (None if level == "short" else scene.backdrop), caption
        assert found.light in ((scene.light,) if level == "detailed" else (scene.light, None)), caption


def test_facts_not_stated_are_not_parsed():
    quiet = dict.fromkeys(STYLES, replace(WHOLE, tintless=1, tintless_photo=1, stated=0))
    for scene in SCENES:
        found = parse_caption(describe_scene(scene, "en", "short", 0, quiet), "en")
        assert found.kinds == facts_of(scene).kinds
        assert not found.tints
        assert scene.relation is None or not found.relations


def a_thing(kind: str, tint: str, x: float = 0.0) -> Thing:
    return Thing(kind, tint, x, 0.0, 0.0, 1.0, 0.0)


PAIR = Scene(
    "relation", (a_thing("car", "red", -0.7), a_thing("ball", "blue", 0.7)), "left of", "mist", "left"
)


@pytest.mark.parametrize(
    ("caption", "kinds", "tints", "relations"),
    [
        ("Two things: a red car is left of a blue ball!", "car ball", "car-red ball-blue", "car<ball"),
        ("There is a blue ball to the right of a red car.", "car ball", "car-red ball-blue", "car<ball"),
        ("A blue ball is left of a red car", "car ball", "car-red ball-blue", "ball<car"),
        ("A red ball, and nothing else", "ball", "ball-red", ""),
        ("a pale blue backdrop with no object", "", "", ""),
        ("the carpet and the redhead starred", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_wordings_outside_nano_scenes(caption, kinds, tints, relations):
    found = parse_caption(caption, "en")
    assert found.kinds == set(kinds.split())
    assert found.tints == {tuple(pair.split("-")) for pair in tints.split()}
    wanted = [pair.split("<") for pair in relations.split()]
    assert found.relations == {(a, "left of", b) for a, b in wanted}


def test_numbers_are_parsed_as_words_and_digits():
    assert parse_caption("three green trees", "en").counts == {("tree", 3)}
    assert parse_caption("3 grüne Bäume", "de").counts == {("tree", 3)}
    assert parse_caption("红色的球，共三个", "zh").counts == {("ball", 3)}
    assert parse_caption("赤いボールが二個", "ja").counts == {("ball", 2)}
    assert parse_caption("две красные лампы", "ru").counts == {("lamp", 2)}


def rows_of(scenes, lang="en", level="medium", lie=lambda scene: scene):
    return [
        {"scene": scene.to_json(), "captions": {lang: {level: told(lie(scene), lang, level)}}}
        for scene in scenes
    ]


@pytest.mark.parametrize(("lang", "level"), [("en", "detailed"), ("ja", "short"), ("ru", "tags")])
def test_true_captions_score_one_and_the_prior_scores_low(lang, level):
    one, everything = score_captions(rows_of(SCENES, lang, level))
    assert (one["lang"], one["level"], one["captions"]) == (lang, level, len(SCENES))
    for aspect in ASPECTS:
        assert (one[aspect]["precision"], one[aspect]["recall"], one[aspect]["f1"]) == (1, 1, 1)
        assert 0 < one[aspect]["prior"]["f1"] < 0.4
        assert everything[aspect]["f1"] == 1


def other_tint(scene):
    return replace(
        scene, things=tuple(replace(t, tint="red" if t.tint != "red" else "blue") for t in scene.things)
    )


def other_side(scene):
    return replace(scene, relation=scene.relation and INVERSE[scene.relation])


@pytest.mark.parametrize(
    ("lie", "falls"), [(other_tint, {"colours"}), (other_side, {"relations"})], ids=["tint", "side"]
)
def test_a_false_fact_lowers_only_its_own_score(lie, falls):
    related = [scene for scene in SCENES if scene.relation]
    row, _ = score_captions(rows_of(related, lie=lie))
    assert {aspect for aspect in ASPECTS if row[aspect]["f1"] < 1} == falls
    assert all(row[aspect]["precision"] == 0 for aspect in falls)


def test_a_missing_caption_states_no_facts():
    rows = rows_of([PAIR] * 4)
    del rows[0]["captions"]["en"]
    row, _ = score_captions([*rows, {"captions": {"en": {"medium": "no scene"}}}])
    assert row["captions"] == 3
    assert (row["objects"]["precision"], row["objects"]["recall"]) == (1, 0.75)


def test_rows_without_scenes_are_an_error():
    with pytest.raises(LuminaError, match="scene"):
        list(score_captions([{"captions": {"en": {"short": "a car"}}}]))


def test_the_prior_is_the_best_single_answer():
    scenes = [PAIR] * 3 + [replace(PAIR, things=(a_thing("cup", "red"), a_thing("tree", "pink")))]
    row, _ = score_captions(rows_of(scenes))
    # "a car and a ball": 6 of 8 said, 6 of 8 wanted
    assert row["objects"]["prior"] == {"precision": 0.75, "recall": 0.75, "f1": 0.75}

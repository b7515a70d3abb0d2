"""Captions without a level: lists of tags are tags; other captions get a level by their length."""

import pytest

from lumina_cli.core.io.captions import caption_fields, caption_level, with_captions

TAGS = [
    "1girl, solo, long hair, blue eyes, smile",
    "1girl solo long_hair blue_eyes looking_at_viewer",
    "masterpiece, best quality, (red car:1.2), outdoors, sunset",
    "photo, street, woman in red dress, rain, night, umbrella",
    "cat, grass, sun.",
    "ohwx man, suit, office, standing at a desk",
    "red car; hill; evening",
    "cat|grass|sun",
    "1girl, solo,\nlong hair,\nsmile",
    "trash can, red hat, music stands",
    "红色汽车，山坡，傍晚，云",
    "赤い車、丘、夕方",
    "rotes Auto, Hügel, Abend",
    "1boy, male focus, armor, sword, holding sword, cape, " * 6 + "standing",
]
PROSE = [
    ("a red car on a hill", "short"),
    ("a cat, a dog, and a mouse", "short"),
    ("a red car, a blue ball and a tree", "short"),
    ("Paris, France", "short"),
    ("two dogs, one black, one white, run on a beach", "short"),
    ("A red car stands on a hill, the sun is low, clouds are pink", "medium"),
    ("Red, white and blue flags hang from a balcony, seen from below, on a street", "medium"),
    ("一辆红色的汽车停在傍晚的山坡上，远处有一片湖，天空中有粉色的云。", "short"),
    ("A man. A dog. A house, a tree, a car.", "short"),
    ("In the rain, at night, a woman with an umbrella waits", "short"),
    ("car\nhill\nevening", "short"),
    ("a sign\nthe sea, blue\ntwo boats", "short"),
    ("a man with a camera, black and white, grass", "short"),
    ("man with a camera, black and white, grass", "short"),
    ("The Eiffel Tower, night, Paris", "short"),
    ("Sunset over the sea, waves, birds", "short"),
    ("he smiles, she laughs, they dance", "short"),
    ("ein Hund, Wiese, Sonne", "short"),
    ("一只猫，草地，阳光", "short"),
]


@pytest.mark.parametrize("text", TAGS, ids=range(len(TAGS)))
def test_lists_of_tags_are_tags(text):
    assert caption_level(text) == "tags"
    assert with_captions({"text": text})["captions"] == {"en": {"tags": text.strip()}}


@pytest.mark.parametrize(("text", "level"), PROSE, ids=range(len(PROSE)))
def test_sentences_have_a_level_by_their_length(text, level):
    assert caption_level(text) == level


def test_english_captions_of_nano_are_not_taken_for_tags():
    from lumina_cli.core.nano.captions import describe_scene
    from lumina_cli.core.nano.scene import draw_scene

    for index in range(60):
        for level in ("short", "medium", "detailed"):
            text = describe_scene(draw_scene(9, index), "en", level, index)
            assert caption_level(text) != "tags", text


def test_a_list_of_single_words_is_a_list_of_tags():
    assert caption_fields(["cat", "grass", "blue sky"]) == {
        "captions": {"en": {"tags": "cat, grass, blue sky"}}
    }
    assert list(caption_fields(["a cat on grass", "a cat"])["captions"]["en"]) == ["short", "short_2"]

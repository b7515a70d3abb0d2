"""Captions of nano scenes: true, varied, with the intended frequencies, and grammatical in five languages."""

import random
import re
from itertools import product

import pytest

from lumina_cli.core.errors import UsageError
from lumina_cli.core.nano.captions import (
    INVERSES,
    LANGUAGES,
    LEVELS,
    all_captions,
    describe_scene,
    prompt_for,
)
from lumina_cli.core.nano.lexicon import BACKDROP_WORDS, PHRASES, German, Russian
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, LIGHTS, RELATIONS, TINTS, Scene, Thing, draw_scenes
from lumina_cli.core.nano.templates import RELATION_WORDS, SIDES, TEMPLATES

SCENES = list(draw_scenes(11, 400))
MANY = list(draw_scenes(12, 2500))
PHOTO = {"en": "photo", "zh": "照片", "ja": "写真", "ru": "фото", "de": "Foto"}
RELATED = Scene(
    "relation",
    (Thing("car", "red", -0.75, 0.0, 0.0, 1.15, 0.0), Thing("ball", "blue", 0.75, 0.0, 0.0, 0.93, 0.0)),
    "left of",
    "sand",
    "left",
)
GOLDEN = {"en": "a red car left of a blue ball", "de": "ein rotes Auto links, ein blauer Ball rechts"}
COUNTED = Scene(
    "count",
    tuple(Thing("car", "red", x, 0.0, 0.0, 0.8, 0.0) for x in (-1.1, 0.0, 1.1)),
    None,
    "mint",
    "right",
)


def shorts(language, layout, scenes=MANY):
    return [(scene, describe_scene(scene, language, "short")) for scene in scenes if scene.layout == layout]


def words(text):
    return re.findall(r"\w+", text)


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def tellings(scene, language, level, number=400):
    return {describe_scene(scene, language, level, seed) for seed in range(number)}


def test_all_captions_exist_and_are_well_formed():
    for scene in SCENES:
        captions = all_captions(scene)
        assert tuple(captions) == LANGUAGES
        for language, levels in captions.items():
            assert tuple(levels) == LEVELS
            for text in levels.values():
                assert text == text.strip()
                assert text
                assert not re.search(r"[{}]|None|  |的的|のの|\b(\w+) \1\b", text), text
            assert levels["detailed"].endswith("." if language in ("en", "ru", "de") else "。")


def test_captions_depend_only_on_their_arguments():
    state = random.getstate()
    for scene in SCENES[:50]:
        again = Scene.from_json(scene.to_json())
        assert all_captions(scene, 3) == all_captions(again, 3)
        assert describe_scene(scene, "ru", "medium", 3) == all_captions(scene, 3)["ru"]["medium"]
    assert random.getstate() == state
    assert len(tellings(RELATED, "en", "short")) > 20


def test_a_fixed_caption_never_changes():
    """Training text must not depend on the machine, the process or the order of calls."""
    assert describe_scene(RELATED, "en", "short") == GOLDEN["en"]
    assert describe_scene(RELATED, "de", "short") == GOLDEN["de"]


def test_every_word_exists_in_every_language():
    for language in LANGUAGES:
        phrase = PHRASES[language]
        names = {f"{phrase(kind, tint)}" for kind, tint in product(KINDS, TINTS)}
        assert len(names) == len(KINDS) * len(TINTS)
        assert len({f"{phrase(kind, count=3)}" for kind in KINDS}) == len(KINDS)
        assert set(BACKDROP_WORDS[language]) == set(BACKDROPS)
        assert len({word for pair in BACKDROP_WORDS[language].values() for word in pair}) == 2 * len(
            BACKDROPS
        )
        assert set(RELATION_WORDS[language]) == set(RELATIONS)
        assert set(SIDES[language]) == set(LIGHTS)
        assert set(TEMPLATES[language]) == set(TEMPLATES["en"])


def test_backdrop_names_differ_from_color_names():
    for language in LANGUAGES:
        phrase = PHRASES[language]
        tints = {phrase.TINTS[tint] for tint in TINTS} if language != "en" else set(TINTS)
        assert tints.isdisjoint(word for pair in BACKDROP_WORDS[language].values() for word in pair)


@pytest.mark.parametrize("language", LANGUAGES)
def test_fraction_of_short_captions_with_the_word_photo(language):
    texts = [describe_scene(scene, language, "short") for scene in MANY]
    assert 0.35 < share(PHOTO[language] in text.replace("Фото", "фото") for text in texts) < 0.46


@pytest.mark.parametrize("language", LANGUAGES)
def test_short_captions_often_omit_the_color(language):
    """Both tints or none: only one of the two is rare."""
    named = []
    for layout in ("single", "relation", "pair", "count", "group"):
        for scene, text in shorts(language, layout, MANY[:1200]):
            tints = [thing.tint for thing in scene.things[: 1 if layout == "count" else None]]
            named.append((sum(stem(language, tint) in text for tint in set(tints)), len(set(tints))))
    assert 0.30 < share(found == 0 for found, _ in named) < 0.41
    assert share(0 < found < there for found, there in named) < 0.04


def stem(language, tint):
    return tint if language == "en" else PHRASES[language].TINTS[tint]


@pytest.mark.parametrize("language", LANGUAGES)
def test_half_the_short_captions_of_a_relation_state_it(language):
    def stated(scene, text):
        for relation in (scene.relation, INVERSES[scene.relation]):
            ways, adverb, here, _ = RELATION_WORDS[language][relation]
            fixed = [re.sub(r"\{.*?\}", "", way).strip() for way in ways]
            if any(way in text for way in (*fixed, adverb, here)):
                return True
        return False

    assert 0.44 < share(stated(scene, text) for scene, text in shorts(language, "relation")) < 0.58


def test_relations_are_true_and_a_third_are_inverse():
    straight = inverse = 0
    for scene, text in shorts("en", "relation"):
        match = re.fullmatch(
            r"(?:a photo of |a picture of )?an? (?:\w+ )?(\w+) "
            r"(?:to the )?(left of|right of|above|below|over|under|in front of|behind) an? (?:\w+ )?(\w+)",
            text.replace("there is ", "").replace(" is ", " "),
        )
        if match:
            a, said, b = match.groups()
            said = {"over": "above", "under": "below"}.get(said, said)
            kinds = (scene.things[0].kind, scene.things[1].kind)
            assert (a, b) == (kinds if said == scene.relation else kinds[::-1])
            assert said in (scene.relation, INVERSES[scene.relation])
            straight, inverse = straight + (said == scene.relation), inverse + (said != scene.relation)
    assert straight + inverse > 300
    assert 0.27 < inverse / (straight + inverse) < 0.40


def test_left_and_right_are_those_of_the_viewer():
    for seed in range(300):
        text = describe_scene(RELATED, "en", "detailed", seed)
        assert "car is on the right" not in text
        assert "ball is on the left" not in text
        assert "from the left" in text  # the light
        assert "from the right" not in text
    assert any(
        "The car is on the left, the ball is on the right." in t for t in tellings(RELATED, "en", "detailed")
    )
    for text in tellings(RELATED, "ja", "tags"):
        assert "右に赤い車" not in text
        assert "左に青いボール" not in text


def test_nearer_objects_are_in_front():
    front = next(s for s in SCENES if s.relation == "in front of" and s.things[0].x < s.things[1].x)
    name = front.things[0].kind
    texts = " ".join(tellings(front, "en", "detailed"))
    assert f"The {name} is closer and further left." in texts
    assert f"The {name} is in front" in texts
    assert f"The {front.things[1].kind} is closer" not in texts


def test_sizes_are_stated_only_if_visible():
    single = Scene("single", (Thing("cup", "red", 0.0, 0.0, 0.0, 1.6, 0.0),), None, "sky", "left")
    assert all("large" in text for text in tellings(single, "en", "medium", 50))
    assert all("großen" in t or "große" in t for t in tellings(single, "de", "medium", 50))
    middle = Scene("single", (Thing("cup", "red", 0.0, 0.0, 0.0, 1.35, 0.0),), None, "sky", "left")
    assert not any("large" in text or "small" in text for text in tellings(middle, "en", "detailed", 50))
    assert any(
        "a large red car left of a small blue ball" in text for text in tellings(RELATED, "en", "medium")
    )


def test_arrangements_of_counted_objects():
    triangle = next(s for s in SCENES if s.layout == "count" and len(s.things) == 3 and s.things[2].z < -0.5)
    square = next(s for s in SCENES if s.layout == "count" and len(s.things) == 4)
    pair = next(s for s in SCENES if s.layout == "count" and len(s.things) == 2)
    assert "in a row" in " ".join(tellings(COUNTED, "en", "detailed"))
    assert "Two are in front and one is behind" in " ".join(tellings(triangle, "en", "detailed"))
    assert "Two are in front and two are behind" in " ".join(tellings(square, "en", "detailed"))
    assert "They stand side by side" in " ".join(tellings(pair, "en", "detailed"))


def test_groups_are_described_from_left_to_right():
    for scene, text in shorts("en", "group"):
        if "left to right" in text or "between" in text:
            spots = [text.index(f" {thing.kind}") for thing in scene.things]
            a, b, c = spots
            assert (b < a < c) if "between" in text else (a < b < c), text


@pytest.mark.parametrize(("language", "fewest"), [("en", 12), ("zh", 10), ("ja", 9), ("ru", 10), ("de", 10)])
def test_many_phrasings_of_one_scene(language, fewest):
    for layout in ("single", "relation", "pair", "count", "group"):
        scene = next(s for s in SCENES if s.layout == layout)
        for level, least in {"short": 5, "medium": 10, "detailed": 20, "tags": 3}.items():
            assert len(tellings(scene, language, level)) >= least, (layout, level)
    assert len(tellings(RELATED, language, "short")) >= fewest
    assert len(TEMPLATES[language]["relation"] + TEMPLATES[language]["relation photo"]) >= 8


def test_english_phrasings_of_a_relation():
    texts = tellings(RELATED, "en", "short")
    assert {
        "a red car left of a blue ball",
        "a red car to the left of a blue ball",
        "a photo of a red car left of a blue ball",
        "a photo of a car left of a ball",
        "a blue ball right of a red car",
        "to the left of a blue ball there is a red car",
        "a blue ball with a red car on its left",
        "a car and a ball",
        "a ball and a car",
    } <= texts


def test_numbers_are_mostly_words():
    texts = [text for _, text in shorts("en", "count")]
    assert 0.05 < share(bool(re.search(r"\d", text)) for text in texts) < 0.2
    assert {"three red cars", "three cars", "3 red cars", "a photo of three cars"} <= tellings(
        COUNTED, "en", "short"
    )


@pytest.mark.parametrize(("level", "most"), [("short", 17), ("medium", 25), ("detailed", 70), ("tags", 25)])
def test_captions_are_short(level, most):
    for language in ("en", "ru", "de"):
        assert max(len(words(describe_scene(scene, language, level))) for scene in SCENES) <= most
    for language in ("zh", "ja"):
        assert max(len(describe_scene(scene, language, level)) for scene in SCENES) <= 2.5 * most + 20


def test_short_captions_of_one_or_two_objects_are_very_short():
    scenes = [scene for scene in SCENES if scene.layout != "group"]
    for language in ("en", "ru", "de"):
        assert max(len(words(describe_scene(scene, language, "short"))) for scene in scenes) <= 14


def test_detailed_captions_have_two_to_four_sentences():
    for scene in SCENES:
        for language in LANGUAGES:
            text = describe_scene(scene, language, "detailed")
            assert 2 <= len(re.findall(r"[.。]", text)) <= 4


def test_the_vocabulary_is_small():
    """A byte-pair vocabulary of about 1,600 entries must hold all five languages."""
    texts = {lang: [t for s in SCENES for t in all_captions(s)[lang].values()] for lang in LANGUAGES}
    assert len({w.lower() for t in texts["en"] for w in words(t)}) < 130
    assert len({w.lower() for t in texts["de"] for w in words(t)}) < 230
    assert len({w.lower() for t in texts["ru"] for w in words(t)}) < 330
    assert len({c for lang in ("zh", "ja") for t in texts[lang] for c in t}) < 260


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("{a}", "ein roter Ball"), ("links von {a:dat}", "links von einem roten Ball"), ("{b}", "eine kleine lila Tasse"),
        ("neben {b:dat}", "neben einer kleinen lila Tasse"), ("{c}", "drei weiße Autos"), ("von {d:dat}", "von vier rosa Bäumen"),
        ("{a:def} und {b:def}", "der Ball und die Tasse"), ("unter {e:dat}", "unter einem orangefarbenen Herzen"),
        ("{e:bare}", "orangefarbenes Herz"), ("von {f:dat}", "von zwei Würfeln"),
    ],
)  # fmt: skip
def test_german_agreement(frame, text):
    phrases = {
        "a": German("ball", "red"), "b": German("cup", "purple", "small"), "c": German("car", "white", count=3),
        "d": German("tree", "pink", count=4), "e": German("heart", "orange"), "f": German("cube", count=2),
    }  # fmt: skip
    assert frame.format(**phrases) == text


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("{a}", "красный шар"), ("слева от {a:gen}", "слева от красного шара"), ("над {b:ins}", "над маленькой синей чашкой"),
        ("{b}", "маленькая синяя чашка"), ("{c}", "две красные машины"), ("{d}", "три синих дерева"), ("{e}", "большое белое сердце"),
        ("за {e:ins}", "за большим белым сердцем"), ("{f}", "четыре снеговика"), ("от {g:gen}", "от большого синего кольца"),
        ("{h}", "два красных шара"), ("{i}", "маленький синий куб"), ("{c:two}, {c:one}", "две, одна"),
    ],
)  # fmt: skip
def test_russian_agreement(frame, text):
    phrases = {
        "a": Russian("ball", "red"), "b": Russian("cup", "blue", "small"), "c": Russian("car", "red", count=2),
        "d": Russian("tree", "blue", count=3), "e": Russian("heart", "white", "large"), "f": Russian("snowman", count=4),
        "g": Russian("ring", "blue", "large"), "h": Russian("ball", "red", count=2), "i": Russian("cube", "blue", "small"),
    }  # fmt: skip
    assert frame.format(**phrases) == text


def test_counters():
    assert "三辆红色的汽车" in tellings(COUNTED, "zh", "short")
    assert "赤い車が三台" in tellings(COUNTED, "ja", "short")
    assert "三台の赤い車" in tellings(COUNTED, "ja", "short")
    assert "一辆红色的汽车在一个蓝色的球左边" in tellings(RELATED, "zh", "short")


CAR, BALL, RED_CAR, BLUE_BALL = ("car", None), ("ball", None), ("car", "red"), ("ball", "blue")
PROMPTS = [
    ("en", "single_object", [CAR], {}, "a photo of a car"),
    ("en", "two_object", [CAR, BALL], {}, "a photo of a car and a ball"),
    ("en", "counting", [CAR], {"count": 3}, "a photo of three cars"),
    ("en", "colors", [("car", "orange")], {}, "a photo of an orange car"),
    ("en", "position", [CAR, BALL], {"relation": "left of"}, "a photo of a car left of a ball"),
    ("en", "position", [BALL, CAR], {"relation": "below"}, "a photo of a ball below a car"),
    ("en", "color_attr", [RED_CAR, BLUE_BALL], {}, "a photo of a red car and a blue ball"),
    ("zh", "counting", [CAR], {"count": 2}, "两辆汽车的照片"),
    ("zh", "colors", [RED_CAR], {}, "一辆红色汽车的照片"),
    ("ja", "counting", [CAR], {"count": 3}, "三台の車の写真"),
    ("ja", "position", [CAR, BALL], {"relation": "left of"}, "ボールの左にある車の写真"),
    ("ru", "counting", [CAR], {"count": 2}, "на фото две машины"),
    ("ru", "position", [CAR, BALL], {"relation": "above"}, "на фото машина над шаром"),
    ("de", "counting", [BALL], {"count": 4}, "ein Foto von vier Bällen"),
    ("de", "color_attr", [RED_CAR, BLUE_BALL], {}, "ein Foto von einem roten Auto und einem blauen Ball"),
]


@pytest.mark.parametrize(("language", "task", "things", "more", "text"), PROMPTS)
def test_prompts(language, task, things, more, text):
    assert prompt_for(task, things, language=language, **more) == text


def test_prompts_use_the_words_of_captions():
    for language in LANGUAGES:
        prompt = prompt_for("position", [CAR, BALL], "left of", language=language)
        assert prompt in tellings(RELATED, language, "short", 1500)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: describe_scene(RELATED, "fr", "short"), "unknown language 'fr'"),
        (lambda: describe_scene(RELATED, "en", "long"), "unknown level 'long'"),
        (lambda: prompt_for("colour", [CAR]), "unknown task 'colour'; did you mean 'colors'?"),
        (lambda: prompt_for("position", [CAR, BALL]), "unknown relation None"),
        (lambda: prompt_for("counting", [CAR], count=5), "takes a count of 2, 3 or 4, not 5"),
        (lambda: prompt_for("two_object", [CAR]), r"takes 2 thing\(s\), not 1"),
        (lambda: prompt_for("single_object", [("cat", None)]), "unknown kind 'cat'"),
    ],
)
def test_invalid_arguments_are_reported(call, message):
    with pytest.raises(UsageError, match=message):
        call()

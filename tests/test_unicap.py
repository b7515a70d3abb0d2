"""Instructions, checks and the stream of `core/unicap`, with a captioner made of a dictionary."""

import threading

import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyBad, UsageError
from lumina_cli.core.unicap.checks import LENGTHS, check
from lumina_cli.core.unicap.prompts import LANGS, LEVELS, MAX_TOKENS, check_names, instruction
from lumina_cli.core.unicap.stream import Answer, caption_rows

GOOD = "a red car left of a blue ball"
DETAILED = {
    "en": "A rendered picture of a toy scene. A red car stands to the left of a blue ball on a grey floor, and both "
    "throw a soft shadow to the right. The car is small and matt, the ball is large and shiny.",
    "de": "Ein gerendertes Bild einer Spielzeugszene. Ein rotes Auto steht links von einem blauen Ball auf einem "
    "grauen Boden. Das Auto ist klein und matt, der Ball ist groß und glänzend.",
    "ru": "Трёхмерная сцена с игрушками. Красная машина стоит слева от синего мяча на сером полу, и обе игрушки "
    "отбрасывают мягкую тень вправо. Машина маленькая и матовая, мяч большой и блестящий.",
    "zh": "这是一幅渲染的玩具场景图。一辆红色的小汽车停在蓝色大球的左边，灰色的地面上有柔和的影子，背景干净明亮。",
    "ja": "おもちゃの場面を描いた画像です。赤い小さな車が青い大きなボールの左にあり、灰色の床に柔らかい影が落ちています。",
}


class Echo:
    """A captioner that answers by a function of (picture, question, seed) and remembers its calls."""

    def __init__(self, write):
        self.write, self.calls = write, []

    def answer(self, pictures, question, seeds, max_tokens):
        self.calls.append((len(pictures), question, tuple(seeds), max_tokens))
        written = [self.write(*each) for each in zip(pictures, [question] * len(seeds), seeds, strict=True)]
        return [one if isinstance(one, Answer) else Answer(one, True) for one in written]


def open_white(row):
    if row["image"] == "bad.png":
        raise LuminaError("bad.png: truncated")
    return Image.new("RGB", (4, 4), "white")


def run(rows, write, levels=("short",), langs=("en",), **settings):
    return list(caption_rows(rows, Echo(write), levels, langs, open_white, **settings))


def rows_of(count):
    return [{"image": f"{i}.png", "n": i} for i in range(count)]


def test_every_level_has_an_instruction_in_every_language_and_limits():
    texts = [instruction(level, lang) for level in LEVELS for lang in LANGS]
    assert len(set(texts)) == len(LEVELS) * len(LANGS)
    assert set(MAX_TOKENS) == set(LENGTHS) == set(LEVELS)


@pytest.mark.parametrize("lang", LANGS)
def test_an_instruction_is_written_in_its_own_language(lang):
    assert check(instruction("detailed", lang), "detailed", lang) is None


@pytest.mark.parametrize("word", ["style", "main object", "other object", "colour", "relation"])
def test_the_detailed_level_asks_for_the_five_perspectives(word):
    assert word in instruction("detailed", "en")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown level 'shrot'; choose from detailed, medium, short, tags"):
        check_names("level", ["short", "shrot"], LEVELS)
    with pytest.raises(UsageError, match="unknown language 'fr'; choose from en, zh, ja, ru, de"):
        instruction("short", "fr")
    with pytest.raises(UsageError, match="no level given"):
        check_names("level", [], LEVELS)
    assert check_names("level", ["tags", "short", "tags"], LEVELS) == ("tags", "short")


@pytest.mark.parametrize("lang", LANGS)
def test_a_good_caption_passes_in_its_language_and_in_no_other(lang):
    text = DETAILED[lang]
    assert check(text, "detailed", lang) is None
    for other in set(LANGS) - {lang}:
        assert check(text, "detailed", other).startswith(f"not in {LANGS[other]}: ")


@pytest.mark.parametrize(
    ("text", "level", "lang", "reason"),
    [
        ("  \n", "short", "en", "empty"),
        ("a car", "short", "en", "too short: 5 characters, short has at least 8"),
        ("a car and " * 40, "short", "en", "too long: 400 characters, short has at most 320"),
        ("I'm sorry, I cannot see a picture.", "short", "en", "a refusal: \"I'm sorry\""),
        ("很抱歉，我无法查看图片。", "short", "zh", "a refusal: '抱歉'"),
        ("Es tut mir leid, das geht nicht.", "short", "de", "a refusal: 'tut mir leid'"),
        ("К сожалению, я не могу.", "short", "ru", "a refusal: 'К сожалению'"),
        ("申し訳ありませんが見えません。", "short", "ja", "a refusal: '申し訳'"),
        ("a car, a car, a car, a car, a car, a car", "short", "en", "repeats 'a car,'"),
        ("a car" + "!" * 40, "short", "en", "repeats '!!!'"),
        ("red, car, " + "ball, sky, red, " * 3 + "car", "tags", "en", "repeats 'red' 4 times"),
        ("一辆红色的车和一个球", "short", "en", "not in English: Han letters"),
        ("きれいな赤いくるま", "short", "zh", "not in Chinese: kana letters"),
        ("12345 67890", "short", "en", "not in English: no letters"),
        ("a car \ufffd here", "short", "en", "a broken character: '\\ufffd'"),
    ],
)  # fmt: skip
def test_a_bad_caption_is_rejected_with_the_reason(text, level, lang, reason):
    assert check(text, level, lang) == reason


@pytest.mark.parametrize(
    ("text", "level", "lang"),
    [
        ("红色汽车，蓝色球", "tags", "zh"),
        ("赤色, 自動車, 青色, 球体", "tags", "ja"),
        ("red car, blue ball, left, grey backdrop", "tags", "en"),
        ("A sign that reads 'Ich bin da' on a shop in the snow.", "short", "en"),
        ("An old man in a no-image T-shirt.", "short", "en"),
    ],
)
def test_an_unusual_caption_passes(text, level, lang):
    assert check(text, level, lang) is None


def test_rows_come_out_in_order_with_their_own_keys():
    rows = run(rows_of(5), lambda *_: f"  {GOOD}\n", batch=2)
    assert rows == [{"image": f"{i}.png", "n": i, "captions": {"en": {"short": GOOD}}} for i in range(5)]


def test_captions_join_those_that_a_row_has_and_leave_the_input_alone():
    row = {
        "image": "0.png",
        "captions": {"en": {"short": "an old one here", "tags": "old"}, "zh": {"tags": "旧"}},
    }
    (out,) = run([row], lambda *_: GOOD)
    assert out["captions"] == {"en": {"short": GOOD, "tags": "old"}, "zh": {"tags": "旧"}}
    assert row["captions"]["en"]["short"] == "an old one here"


def test_a_failed_caption_is_asked_for_again_alone_and_with_another_seed():
    captioner = Echo(lambda picture, question, seed: GOOD if seed in good else "")
    good = set()
    list(caption_rows(rows_of(3), captioner, ["short"], ["en"], open_white, retries=0))
    good.update(captioner.calls[0][2][:2])  # the third picture fails at first
    captioner.calls.clear()
    (*_, last) = caption_rows(rows_of(3), captioner, ["short"], ["en"], open_white, retries=2)
    assert [call[0] for call in captioner.calls] == [3, 1, 1]
    assert len({seed for call in captioner.calls for seed in call[2]}) == 5
    assert last["captions"] == {}
    assert last["rejected_captions"] == [{"lang": "en", "level": "short", "reason": "empty", "text": ""}]


def test_a_caption_that_was_cut_off_is_rejected():
    (row,) = run(rows_of(1), lambda *_: Answer(GOOD, False))
    assert row["rejected_captions"][0]["reason"] == f"cut off at {MAX_TOKENS['short']} tokens"


def test_a_retry_that_succeeds_leaves_no_trace():
    tries = []
    (row,) = run(rows_of(1), lambda *_: tries.append(1) or (GOOD if len(tries) > 1 else ""))
    assert row["captions"] == {"en": {"short": GOOD}}
    assert "rejected_captions" not in row


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_seeds_depend_on_the_place_not_on_the_batch(batch):
    captioner = Echo(lambda *_: GOOD)
    list(caption_rows(rows_of(5), captioner, ["short"], ["en"], open_white, batch=batch, seed=3))
    whole = Echo(lambda *_: GOOD)
    list(caption_rows(rows_of(5), whole, ["short"], ["en"], open_white, batch=5, seed=3))
    assert tuple(seed for call in captioner.calls for seed in call[2]) == whole.calls[0][2]


def test_bad_pictures_are_left_out_counted_and_told():
    told = []
    rows = [{"image": name} for name in ("0.png", "bad.png", "1.png", "bad.png")]
    stream = caption_rows(
        rows, Echo(lambda *_: GOOD), ["short"], ["en"], open_white,
        batch=3, max_bad_rate=0.4, on_reject=lambda row, reason: told.append(reason),
    )  # fmt: skip
    assert [next(stream)["image"] for _ in range(2)] == ["0.png", "1.png"]
    with pytest.raises(
        TooManyBad, match=r"2 of 4 pictures could not be opened \(50%\); --max-bad-rate allows 40%"
    ):
        next(stream)
    assert told == ["bad.png: truncated"] * 2
    assert len(run(rows, lambda *_: GOOD, max_bad_rate=0.5)) == 2


def test_captions_of_another_shape_are_a_bad_row():
    told = []
    rows = [{"image": "0.png", "captions": "a car"}]
    assert run(rows, lambda *_: GOOD, on_reject=lambda row, reason: told.append(reason)) == []
    assert told == ["'captions' of the row is not {language: {level: text}}"]


def test_no_rows_give_no_rows():
    assert run([], lambda *_: GOOD) == []


def test_it_reads_one_batch_ahead_and_opens_pictures_in_another_thread():
    taken, threads = [], set()

    def rows():
        for row in rows_of(20):
            taken.append(row)
            yield row

    def open_image(row):
        threads.add(threading.current_thread())
        return open_white(row)

    stream = caption_rows(rows(), Echo(lambda *_: GOOD), ["short"], ["en"], open_image, batch=4)
    next(stream)
    assert len(taken) == 8
    assert threading.current_thread() not in threads
    stream.close()

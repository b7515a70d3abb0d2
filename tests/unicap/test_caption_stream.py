"""Prompts, checks and the caption stream, with a captioner that answers from a dictionary."""

import json
import threading
import time

import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyRejects, UsageError
from lumina_cli.core.unicap.checks.rules import LENGTHS, check_caption
from lumina_cli.core.unicap.engines import noop
from lumina_cli.core.unicap.prompts import DOMAINS, LANGS, LEVELS, MAX_TOKENS, check_names, instruction
from lumina_cli.core.unicap.protocol import Answer, Engine
from lumina_cli.core.unicap.stats import CaptionObserver, CaptionStats
from lumina_cli.core.unicap.stream import CaptionRequest, caption_rows

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


class Echo(Engine):
    """A captioner that answers by a function of a question, and remembers its calls."""

    def __init__(self, write):
        self.write, self.calls = write, []

    def answer(self, questions):
        self.calls.append(list(questions))
        written = [self.write(question) for question in questions]
        return [one if isinstance(one, Answer) else Answer(one, True) for one in written]


def open_white(row):
    """A picture of its own for each row: white but for a pixel."""
    if row["image"] == "bad.png":
        raise LuminaError("bad.png: truncated")
    image = Image.new("RGB", (4, 4), "white")
    image.putpixel((0, 0), (int(row["image"].removesuffix(".png")), 0, 0))
    return image


def run(rows, write, levels=("short",), langs=("en",), **settings):
    job = {
        name: settings.pop(name)
        for name in ("seed", "retries", "domain", "derive", "keep", "replace")
        if name in settings
    }
    engine = write if isinstance(write, Echo) else Echo(write)
    return list(caption_rows(rows, engine, CaptionRequest(levels, langs, **job), open_white, **settings))


class Rejects(CaptionObserver):
    """Collects the reasons of rejected rows in a list."""

    def __init__(self, reasons):
        super().__init__()
        self.reasons = reasons

    def on_reject(self, row, reason):
        self.reasons.append(reason)


def rows_of(count):
    return [{"image": f"{i}.png", "n": i} for i in range(count)]


def test_every_level_has_an_instruction_in_every_language_and_limits():
    texts = [instruction(level, lang) for level in LEVELS for lang in LANGS]
    assert len(set(texts)) == len(LEVELS) * len(LANGS)
    assert set(MAX_TOKENS) == set(LENGTHS) == set(LEVELS)


@pytest.mark.parametrize("lang", LANGS)
def test_an_instruction_is_written_in_the_caption_language(lang):
    assert check_caption(instruction("detailed", lang), "detailed", lang) is None


@pytest.mark.parametrize("word", ["style", "main object", "other object", "colour", "relation"])
def test_the_detailed_level_asks_for_the_five_perspectives(word):
    assert word in instruction("detailed", "en")


def test_unknown_names_are_rejected_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown level 'shrot'; choose from detailed, medium, short, tags"):
        check_names("level", ["short", "shrot"], LEVELS)
    with pytest.raises(UsageError, match="unknown language 'xx'; give codes such as en, zh, ja, ru, de"):
        instruction("short", "xx")
    with pytest.raises(UsageError, match="unknown domain 'dokument'; choose from auto"):
        instruction("short", "en", "dokument")
    with pytest.raises(UsageError, match="no level given"):
        check_names("level", [], LEVELS)
    assert check_names("level", ["tags", "short", "tags"], LEVELS) == ("tags", "short")


@pytest.mark.parametrize("lang", LANGS)
def test_a_valid_caption_is_accepted_only_in_its_language(lang):
    text = DETAILED[lang]
    assert check_caption(text, "detailed", lang) is None
    for other in set(LANGS) - {lang}:
        assert check_caption(text, "detailed", other).startswith(f"not in {LANGS[other]}: ")


@pytest.mark.parametrize(
    ("text", "level", "lang", "reason"),
    [
        ("  \n", "short", "en", "empty"),
        ("car", "short", "en", "too short: 3 characters, short has at least 5"),
        ("a car and " * 40, "short", "en", "too long: 400 characters, short has at most 320"),
        ("I'm sorry, I cannot see a picture.", "short", "en", "a refusal: \"I'm sorry, I cannot see a picture\""),
        ("很抱歉，我无法查看图片。", "short", "zh", "a refusal: '很抱歉，我无法查看'"),
        ("Es tut mir leid, das geht nicht.", "short", "de", "a refusal: 'Es tut mir leid, das geht nicht'"),
        ("К сожалению, я не могу.", "short", "ru", "a refusal: 'К сожалению, я не могу'"),
        ("申し訳ありませんが見えません。", "short", "ja", "a refusal: '申し訳ありませんが見えません'"),
        ("a car, a car, a car, a car, a car, a car", "short", "en", "repeats 'a car,'"),
        ("a car" + "!" * 40, "short", "en", "repeats '!!!'"),
        ("red, car, " + "ball, sky, red, " * 3 + "car", "tags", "en", "repeats 'red' 4 times"),
        ("一辆红色的车和一个球", "short", "en", "not in English: Han letters"),
        ("きれいな赤いくるま", "short", "zh", "not in Chinese: kana letters"),
        ("12345 67890", "short", "en", "not in English: no letters"),
        ("a car \ufffd here", "short", "en", "a broken character: '\\ufffd'"),
    ],
)  # fmt: skip
def test_an_invalid_caption_is_rejected_with_the_reason(text, level, lang, reason):
    assert check_caption(text, level, lang) == reason


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
def test_an_unusual_caption_is_accepted(text, level, lang):
    assert check_caption(text, level, lang) is None


def test_rows_keep_their_order_and_keys():
    rows = run(rows_of(5), lambda _: f"  {GOOD}\n", batch=2)
    assert rows == [{"image": f"{i}.png", "n": i, "captions": {"en": {"short": GOOD}}} for i in range(5)]


def test_captions_are_merged_without_changing_the_input():
    row = {
        "image": "0.png",
        "captions": {"en": {"short": "an old one here", "tags": "old"}, "zh": {"tags": "旧"}},
    }
    (out,) = run([row], lambda _: GOOD, replace=True)
    assert out["captions"] == {"en": {"short": GOOD, "tags": "old"}, "zh": {"tags": "旧"}}
    assert row["captions"]["en"]["short"] == "an old one here"


@pytest.mark.parametrize(
    ("by", "options", "text"),
    [
        (None, {}, "an old one here"),
        ({"en": {"short": "openai"}}, {}, GOOD),
        ({"en": {"tags": "openai"}}, {}, "an old one here"),
        ({"de": {"short": "openai"}}, {}, "an old one here"),
        ({"en": {"short": "openai"}}, {"keep": True}, "an old one here"),
        (None, {"replace": True}, GOOD),
        ({"en": None}, {}, "an old one here"),
        ("openai", {}, "an old one here"),
    ],
)
def test_captions_that_people_wrote_are_kept(by, options, text):
    row = {"image": "0.png", "captions": {"en": {"short": "an old one here"}}}
    stats = CaptionStats()
    (out,) = run(
        [row | ({"captioned_by": by} if by else {})],
        lambda _: GOOD,
        observer=CaptionObserver(stats),
        **options,
    )
    assert out["captions"]["en"]["short"] == text
    assert stats.row().get("kept", 0) == (text != GOOD)


def test_empty_captions_and_those_of_rendered_scenes_are_replaced():
    for row in (
        {"captions": {"en": {"short": " "}}},
        {"captions": {"en": {"short": "a red ball"}}, "scene": {"seed": 1}},
    ):
        (out,) = run([{"image": "0.png", **row}], lambda _: GOOD)
        assert out["captions"]["en"]["short"] == GOOD


def test_keeping_and_replacing_exclude_each_other():
    with pytest.raises(UsageError, match="--keep and --replace exclude each other"):
        CaptionRequest(keep=True, replace=True)


def test_only_a_failed_caption_is_retried_with_another_seed():
    captioner = Echo(lambda question: "" if question.image.getpixel((0, 0))[0] == 2 else GOOD)
    (*_, last) = run(rows_of(3), captioner, retries=2)
    assert [len(call) for call in captioner.calls] == [3, 1, 1]
    assert len({question.seed for call in captioner.calls for question in call}) == 5
    assert [call[-1].attempt for call in captioner.calls] == [0, 1, 2]
    assert last["captions"] == {}
    reject = {"lang": "en", "level": "short", "code": "empty", "reason": "empty", "text": ""}
    assert last["rejected_captions"] == [reject]


def test_a_retry_names_the_fault_if_the_model_takes_instructions():
    for heeds in (True, False):
        captioner = Echo(lambda _: "ein rotes Auto steht links von dem Ball und der Ball ist blau")
        captioner.heeds_hints = heeds
        (row,) = run(rows_of(1), captioner, retries=1, domain="synthetic")
        (first,), (second,) = captioner.calls
        assert first.text == instruction("short", "en")
        assert second.text == first.text + "\nWrite in English only." * heeds
        assert row["rejected_captions"][0]["code"] == "language"


def test_a_caption_that_was_cut_off_is_rejected():
    (row,) = run(rows_of(1), lambda _: Answer(GOOD, False))
    assert row["rejected_captions"][0]["reason"] == f"cut off at {MAX_TOKENS['short']} tokens"


def test_a_successful_retry_is_not_recorded():
    tries = []
    (row,) = run(rows_of(1), lambda _: tries.append(1) or (GOOD if len(tries) > 1 else ""))
    assert row["captions"] == {"en": {"short": GOOD}}
    assert "rejected_captions" not in row


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_seeds_depend_on_the_image_and_not_on_path_or_batch(batch):
    def seeds(rows, batch):
        captioner = Echo(lambda _: GOOD)
        run(rows, captioner, ("short", "tags"), batch=batch, seed=3)
        asked = [question for call in captioner.calls for question in call]
        return {(q.image.getpixel((0, 0)), q.level): q.seed for q in asked}

    assert seeds(rows_of(5)[::-1], batch) == seeds(rows_of(5), 5)
    assert len(set(seeds(rows_of(5), 5).values())) == 10


def test_bad_images_are_skipped_counted_and_reported():
    told = []
    rows = [{"image": name} for name in ("0.png", "bad.png", "1.png", "bad.png")]
    stream = caption_rows(
        rows, Echo(lambda _: GOOD), CaptionRequest(("short",)), open_white,
        batch=3, max_bad_rate=0.4, observer=Rejects(told),
    )  # fmt: skip
    assert [next(stream)["image"] for _ in range(2)] == ["0.png", "1.png"]
    with pytest.raises(
        TooManyRejects, match=r"2 of 4 images cannot be opened \(50%\); --max-bad-rate allows 40%"
    ):
        next(stream)
    assert told == ["bad.png: truncated"] * 2
    assert len(run(rows, lambda _: GOOD, max_bad_rate=0.5)) == 2


def test_malformed_captions_make_a_bad_row():
    told = []
    rows = [{"image": "0.png", "captions": "a car"}]
    assert run(rows, lambda _: GOOD, observer=Rejects(told)) == []
    assert told == ["'captions' of 0.png is not {language: {level: text}}"]


def test_no_rows_give_no_rows():
    assert run([], lambda _: GOOD) == []


def test_images_are_opened_one_batch_ahead_in_another_thread():
    taken, threads = [], set()

    def rows():
        for row in rows_of(20):
            taken.append(row)
            yield row

    def open_image(row):
        threads.add(threading.current_thread())
        return open_white(row)

    stream = caption_rows(rows(), Echo(lambda _: GOOD), CaptionRequest(("short",)), open_image, batch=4)
    next(stream)
    assert len(taken) == 8
    assert threading.current_thread() not in threads
    stream.close()


def test_all_levels_and_languages_of_a_batch_are_one_call():
    captioner = Echo(
        lambda q: DETAILED[q.lang] if q.level != "short" else {"en": GOOD, "de": "ein rotes Auto"}[q.lang]
    )
    rows = run(rows_of(4), captioner, ("medium", "short"), ("en", "de"), batch=4)
    assert [len(call) for call in captioner.calls] == [16]
    assert rows[3]["captions"]["de"] == {"medium": DETAILED["de"], "short": "ein rotes Auto"}


def test_the_command_line_overrides_the_domain_of_a_row():
    rows = [{"image": "0.png", "domain": "document"}, {"image": "1.png", "domain": "example.org"}]
    for wanted, said in (("auto", ("document", "auto")), ("panels", ("panels", "panels"))):
        captioner = Echo(lambda _: GOOD)
        run(rows, captioner, domain=wanted)
        texts = [question.text for question in captioner.calls[0]]
        assert texts == [instruction("short", "en", domain) for domain in said]


def test_every_domain_has_instructions_in_every_language():
    for level in ("detailed", "medium"):
        texts = [instruction(level, lang, domain) for lang in (*LANGS, "fr") for domain in DOMAINS]
        assert len(set(texts)) == len(texts)


def test_other_languages_are_requested_in_english_by_name():
    assert instruction("short", "fr") == "Describe this picture in French in one short sentence."
    french = "une voiture rouge est à gauche d'une balle bleue"
    (row,) = run(rows_of(1), lambda _: french, langs=("fr",))
    assert row["captions"] == {"fr": {"short": french}}
    (row,) = run(rows_of(1), lambda _: GOOD, langs=("fr",))
    assert row["rejected_captions"][0]["reason"] == "not in French: reads as English"


OTHERS = {
    "fr": "Une voiture rouge est garée devant la maison blanche, sous un ciel gris.",
    "es": "Un perro negro corre por la playa mientras el sol se pone sobre el mar.",
    "it": "Una donna con un cappello giallo legge un libro sulla panchina del parco.",
    "pt": "Um menino segura um balão vermelho na frente de uma janela aberta.",
    "nl": "Een oude fiets staat tegen een bakstenen muur naast een groene deur.",
    "pl": "Czarny kot śpi na drewnianym krześle obok okna w słonecznym pokoju.",
    "uk": "Червона машина стоїть ліворуч від синього м'яча на сірій підлозі.",
    "ko": "빨간 자동차가 회색 바닥 위의 파란 공 왼쪽에 서 있다.",
    "ar": "سيارة حمراء تقف إلى يسار كرة زرقاء على أرضية رمادية.",
    "hi": "धूसर फर्श पर एक लाल कार नीली गेंद के बाईं ओर खड़ी है।",
    "el": "Ένα κόκκινο αυτοκίνητο στέκεται αριστερά από μια μπλε μπάλα.",
    "ta": "சாம்பல் நிற தரையில் ஒரு சிவப்பு கார் நீல பந்தின் இடதுபுறம் நிற்கிறது.",
}


@pytest.mark.parametrize("lang", OTHERS)
def test_other_languages_are_distinguished(lang):
    asked = tuple(OTHERS)
    assert check_caption(OTHERS[lang], "short", lang, asked) is None
    for other in set(OTHERS) - {lang}:
        assert check_caption(OTHERS[lang], "short", other, asked).code == "language"


def test_true_captions_of_another_language_are_rejected():
    """Measured on 20,000 captions: 99.975 % pass, and 99.89 % of those asked for in another language are caught."""
    from lumina_cli.core.nano.captions import LANGUAGES, describe_scene
    from lumina_cli.core.nano.scene import draw_scene

    good = caught = total = wrong = 0
    for index in range(60):
        scene = draw_scene(3, index)
        for lang in LANGUAGES:
            for level in LEVELS:
                text = describe_scene(scene, lang, level, index)
                total, good = total + 1, good + (check_caption(text, level, lang) is None)
                other = LANGUAGES[(LANGUAGES.index(lang) + 1 + index % 4) % 5]
                fault = check_caption(text, level, other)
                wrong, caught = wrong + 1, caught + (fault is not None and fault.code == "language")
    assert good >= 0.999 * total, (good, total)
    assert caught >= 0.99 * wrong, (caught, wrong)


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("This image shows a red car next to a blue ball.", "en"),
        ("An image of a red car and a blue ball", "en"),
        ("In this picture, there is a red car near the ball.", "en"),
        ("Sure! A red car next to a blue ball", "en"),
        ("这张图片展示了一辆红色的汽车和一个蓝色的球", "zh"),
        ("この画像には赤い車と青いボールがあります", "ja"),
        ("На этом изображении показана красная машина", "ru"),
        ("Dieses Bild zeigt ein rotes Auto neben dem Ball", "de"),
        ("Auf diesem Bild sieht man ein rotes Auto", "de"),
    ],
)
def test_an_empty_opening_is_rejected(text, lang):
    assert check_caption(text, "short", lang).code == "boilerplate"


@pytest.mark.parametrize(
    "text", ["a photo of a red car", "An oil painting of a harbour at dusk", "The image of a saint on a flag"]
)
def test_an_opening_that_names_the_image_type_is_accepted(text):
    assert check_caption(text, "short", "en") is None


def test_a_text_that_ends_in_mid_sentence_is_cut_off():
    assert (
        check_caption("A red car stands to the left of a blue ball and the", "medium", "en").code == "cut off"
    )
    assert check_caption("Ein rotes Auto steht links von einem Ball,", "medium", "de").code == "cut off"


def test_text_in_the_image_may_be_in_another_language():
    text = 'A shop sign on a street in the snow reads "营业时间上午九点到下午六点，星期日休息，欢迎光临" in red letters.'
    assert check_caption(text, "medium", "en") is None


class Writer(Echo):
    """Writes in any form: detailed texts of the dictionary, and what is asked for at once as JSON."""

    structured = "guided"

    def __init__(self, bad=()):
        super().__init__(self.reply)
        self.bad = set(bad)

    def reply(self, question):
        if question.form is None:
            return self.text(question.lang, question.level)
        langs = question.form["properties"]
        levels = {lang: langs[lang]["properties"] for lang in langs}
        found = {lang: {level: self.text(lang, level) for level in levels[lang]} for lang in langs}
        for lang, level in self.bad:
            found[lang][level] = ""
        return json.dumps(found, ensure_ascii=False)

    def text(self, lang, level):
        return noop.TAGS[lang] if level == "tags" else DETAILED[lang]


def test_deriving_from_text_takes_two_calls_and_one_image():
    captioner = Writer()
    rows = run(rows_of(3), captioner, ("detailed", "medium", "short"), ("en", "de"), derive="text", batch=3)
    first, second = captioner.calls
    assert [question.image is None for question in first + second] == [False] * 3 + [True] * 3
    assert all(DETAILED["en"] in question.text for question in second)
    assert rows[0]["captions"]["de"] == dict.fromkeys(("detailed", "medium", "short"), DETAILED["de"])


def test_derived_captions_take_one_call_without_guided_decoding():
    captioner = Writer()
    captioner.structured = "asked"
    run(rows_of(2), captioner, ("detailed", "short", "tags"), ("en", "zh"), derive="text")
    assert [len(call) for call in captioner.calls] == [2, 10]


def test_an_existing_detailed_caption_is_the_source():
    captioner = Writer()
    rows = [{"image": "0.png", "captions": {"de": {"detailed": DETAILED["de"]}}}, {"image": "1.png"}]
    out = run(rows, captioner, ("short",), ("en", "zh"), derive="text")
    assert [len(call) for call in captioner.calls] == [1, 2]
    assert DETAILED["de"] in captioner.calls[1][0].text
    assert out[1]["captions"] == {lang: {"short": DETAILED[lang]} for lang in ("en", "zh")}


def test_derived_captions_without_a_source_are_rejected():
    captioner = Echo(lambda _: "")
    (row,) = run(rows_of(1), captioner, ("detailed", "short"), derive="text", retries=0)
    assert [bad["code"] for bad in row["rejected_captions"]] == ["empty", "no source"]


def test_joint_captions_take_one_call_and_failed_ones_are_retried_alone():
    captioner = Writer(bad=[("de", "short")])
    (row,) = run(rows_of(1), captioner, LEVELS, ("en", "de"), derive="once", retries=1)
    assert [len(call) for call in captioner.calls] == [1, 1]
    assert (captioner.calls[1][0].level, captioner.calls[1][0].form) == ("short", None)
    assert set(row["captions"]["de"]) == set(LEVELS)


@pytest.mark.parametrize(
    ("wrap", "kept"),
    [("```json\n{}\n```", 2), ("Here it is: {}.", 2), ("{}", 2), ("[1, 2]", 0), ("{{broken", 0)],
)
def test_json_answers_are_parsed_with_surrounding_text(wrap, kept):
    from lumina_cli.core.unicap.structured import parse_captions

    pairs = [("en", "short"), ("en", "tags")]
    text = wrap.replace("{}", json.dumps({"en": {"short": GOOD, "tags": ["red", "car"]}}))
    found = parse_captions(text, pairs)
    assert len(found) == kept
    assert not kept or found["en", "tags"] == "red, car"


def test_unsupported_requests_are_rejected_before_captioning():
    captioner = Echo(lambda _: GOOD)
    with pytest.raises(UsageError, match="cannot write all captions in one answer"):
        run(rows_of(1), captioner, derive="once")
    captioner.reads_text, captioner.languages = False, ("en",)
    with pytest.raises(UsageError, match="only answers questions about images"):
        run(rows_of(1), captioner, derive="text")
    with pytest.raises(UsageError, match="this model supports en, not fr"):
        run(rows_of(1), captioner, langs=("fr",))


@pytest.mark.parametrize(("derive", "calls"), [("once", [1]), ("text", [2])])
def test_joint_requests_contain_only_missing_captions(derive, calls):
    captioner = Writer()
    whole = {"de": dict.fromkeys(("detailed", "short"), DETAILED["de"])}
    full = whole | {"en": dict.fromkeys(("detailed", "short"), DETAILED["en"])}
    rows = [
        {"image": "0.png", "captions": {"en": {"detailed": DETAILED["en"], "short": GOOD}}},
        {"image": "1.png", "captions": full},
    ]
    if derive == "text":
        rows.append({"image": "2.png", "captions": whole})
        calls = [1, 2]
    out = run(rows, captioner, ("detailed", "short"), ("en", "de"), derive=derive, keep=True)
    assert [len(call) for call in captioner.calls] == (calls if derive == "once" else [1, 1, 1])
    assert out[0]["captions"]["en"]["short"] == GOOD
    assert set(out[0]["captions"]["de"]) == {"detailed", "short"}
    assert out[1] == rows[1]


def test_concurrent_batches_keep_their_order():
    class Slow(Echo):
        lanes = 3

        def answer(self, questions):
            time.sleep(0.002 * questions[0].image.getpixel((0, 0))[0] % 3)
            return super().answer(questions)

    rows = run(rows_of(20), Slow(lambda _: GOOD), batch=2)
    assert [row["n"] for row in rows] == list(range(20))


def test_statistics_include_counts_and_remaining_time():
    stats = CaptionStats(total=10)
    run(
        [*rows_of(4), {"image": "bad.png"}],
        lambda q: GOOD if q.image.getpixel((0, 0))[0] else "",
        observer=CaptionObserver(stats),
        retries=0,
    )
    row = stats.row()
    assert (row["pictures"], row["captions"], row["bad_pictures"], row["questions"]) == (4, 3, 1, 4)
    assert row["rejected"] == {"empty": 1}
    assert stats.left() > 0
    assert stats.line().startswith(
        "5 of 10 images, 3 of 4 requested captions, 1 rejected (1 empty), 1 unreadable, 1 questions per image"
    )

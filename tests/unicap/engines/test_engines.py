"""The captioning engines: working and failing endpoints, vLLM's interface, Florence-2, CLIP."""

import asyncio
import contextlib
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_endpoint import asked, question, said
from PIL import Image
from tiny_captioner import plain_picture, save_clip, save_florence

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.evals.captions.truth import score_captions
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.unicap.engines import florence, open_engine

CAPTIONER = ASSETS / "nano" / "captioner"


@pytest.fixture
def photos(tmp_path):
    for name in ("red", "blue"):
        plain_picture(name).save(tmp_path / f"{name}.png")
    return [tmp_path / "red.png", tmp_path / "blue.png"]


def test_endpoint_requests_are_limited_to_the_batch_size(serve, lumina, tmp_path):
    for number in range(12):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    endpoint = serve(lambda number, request: (200, said("a red car, a ball")))
    words = ("--engine", "openai", "--endpoint", endpoint.url, "--levels", "short,tags", "--batch", 3)
    code, rows, err = lumina(tmp_path, *words)
    assert (code, len(rows), err) == (0, 12, [])
    assert 1 < endpoint.most <= 3
    assert len(endpoint.seen) == 24
    assert {request["max_tokens"] for request, _ in endpoint.seen} == {
        96,
        192,
    }  # in any order: they run at once
    request, _ = endpoint.seen[0]
    assert request["model"] == "only"
    assert request["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (request["temperature"], request["top_p"]) == (0.2, 0.8)


def test_a_busy_or_failing_endpoint_is_retried(serve):
    endpoint = serve(lambda number, _: ((429, 503, 200)[min(number, 3) - 1], said("a red car")))
    assert asked(endpoint, [question()])[0].text == "a red car"
    assert len(endpoint.seen) == 3


def test_a_key_that_is_refused_is_named(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-word")
    endpoint = serve(lambda *_: (403, {"error": {"message": "no"}}))
    with pytest.raises(LuminaError, match="refuses the key in OPENAI_API_KEY") as caught:
        asked(endpoint, [question()], retries=0)
    assert "secret-word" not in str(caught.value)


def test_closing_ends_every_thread_that_waits_for_an_answer(serve):
    """Also one whose request the stopped loop never ends, and one that asks after the engine was closed."""
    endpoint = serve(lambda *_: (200, said("a red car")))
    engine = open_engine("openai", endpoint=endpoint.url)
    started = threading.Event()

    async def never_ends():
        started.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine._run, never_ends())
        assert started.wait(30)
        engine.close()
        with pytest.raises(LuminaError, match="interrupted while waiting for answers"):
            waiting.result(30)
    with pytest.raises(LuminaError, match="interrupted before the request"):
        engine.answer([question()])
    engine.close()


def test_permanent_endpoint_errors_end_the_run_with_one_line(serve, lumina, photos):
    for status, expected in (
        (500, "failed: Error code: 500"),
        (401, "needs a key: set OPENAI_API_KEY"),
        (404, "does not have model 'only'"),
    ):
        endpoint = serve(lambda *_, status=status: (status, {"error": {"message": "so it is"}}))
        with pytest.raises(LuminaError, match=expected) as caught:
            asked(endpoint, [question()] * 3, retries=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(LuminaError, match="did not answer in time"):
        asked(serve(lambda *_: (0, {})), [question()], retries=0, timeout=0.2)
    code, _, err = lumina(*photos, "--engine", "openai", "--endpoint", "http://127.0.0.1:9/v1")
    assert code == 1
    assert err[0].startswith("lumina caption: http://127.0.0.1:9/v1 cannot be reached")
    assert err[0].endswith("is the server running?")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": {"message": "picture too small"}}, "refused by the endpoint: Error code: 400"),
        (200, {"choices": []}, "no text in the endpoint's answer"),
        (200, said(None), "no text in the endpoint's answer"),
        (200, said(None, refusal="I will not"), "refused by the model: I will not"),
        (200, said("", "content_filter"), "refused by the endpoint: content filter"),
        (200, b"<html>", "unreadable answer"),
        (200, b"[]", "unreadable answer: a JSON array, not a JSON object"),
    ],
)
def test_a_bad_answer_rejects_one_caption(serve, status, body, error):
    endpoint = serve(lambda number, _: (200, said("a red car")) if number == 1 else (status, body))
    (good,) = asked(endpoint, [question()])
    assert (good.text, good.tokens, good.finished, good.error) == ("a red car", 5, True, None)
    from lumina_cli.core.unicap.engines.openai import Captioner

    engine = Captioner("only", None, endpoint.url, retries=0)
    engine.answered = True
    (bad,) = engine.answer([question()])
    engine.close()
    assert bad.error.startswith(error)


def test_unsupported_endpoint_settings_are_dropped(serve):
    def reply(number, request):
        for name in ("max_tokens", "temperature"):
            if name in request:
                return 400, {"error": {"message": f"no {name}", "param": name}}
        return 200, said("a red car", "length")

    endpoint = serve(reply)
    (answer,) = asked(endpoint, [question(form={"type": "object"})])
    assert (answer.text, answer.finished) == ("a red car", False)
    last = endpoint.seen[-1][0]
    assert last["max_completion_tokens"] == 40
    assert last["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "temperature" not in last


def test_the_key_comes_from_the_environment(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    endpoint = serve(lambda *_: (200, said("a red car")))
    asked(endpoint, [question()])
    assert "authorization: bearer secret-1" in endpoint.seen[0][1].lower()


def test_an_endpoint_must_be_named(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="needs --endpoint URL"):
        open_engine("openai")
    with pytest.raises(UsageError, match="is not a URL"):
        open_engine("openai", endpoint="localhost:8000")


def test_large_images_are_sent_downscaled():
    import base64
    from io import BytesIO

    from lumina_cli.core.unicap.engines.openai import data_url

    head, _, data = data_url(Image.new("RGB", (4000, 3000))).partition(",")
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64"
    assert 0.99 * 4e6 < image.width * image.height <= 4e6


@pytest.mark.slow
def test_a_real_server_captions_scenes(server, lumina):
    words = ("--levels", "short,tags", "--langs", "en,de", "--domain", "synthetic", "--model", CAPTIONER)
    code, rows, _ = lumina("nano:6?seed=800001", *words, "--engine", "openai", "--endpoint", server)
    assert (code, len(rows), [row for row in rows if "rejected_captions" in row]) == (0, 6, [])
    *_, total = score_captions(rows)
    assert total["captions"] == 24
    assert min(total[aspect]["f1"] for aspect in ("objects", "colours", "counts")) > 0.9


def test_vllm_is_called_as_documented(monkeypatch, lumina, photos):
    calls = []
    written = {"captions": "a red car left of a ball"}

    class Params:
        def __init__(self, **settings):
            self.__dict__ = settings

    class LLM:
        def __init__(self, **settings):
            calls.append(settings)

        def chat(self, messages, sampling_params, use_tqdm):
            calls.append((messages, sampling_params))
            output = types.SimpleNamespace(
                text=f" {written['captions']}", finish_reason="stop", token_ids=[1, 2, 3]
            )
            return [types.SimpleNamespace(outputs=[output]) for _ in messages]

    part = types.ModuleType("vllm.sampling_params")
    part.StructuredOutputsParams = Params
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.sampling_params = LLM, Params, part
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", part)
    code, rows, _ = lumina(*photos, "--engine", "vllm", "--model", "a/b", "--levels", "short,tags")
    assert (code, rows[1]["captions"]["en"]["short"]) == (0, written["captions"])
    assert calls[0] == {"model": "a/b", "limit_mm_per_prompt": {"image": 1}}
    messages, settings = calls[1]
    assert [one.max_tokens for one in settings] == [96, 192] * 2
    assert messages[0][0]["content"][0]["type"] == "image_pil"
    assert messages[0][0]["content"][0]["image_pil"].size == (40, 32)
    calls.clear()
    lumina(photos[0], "--engine", "vllm", "--levels", "short,tags", "--derive", "once", "--retries", 0)
    assert calls[1][1][0].structured_outputs.json["properties"]["en"]["required"] == ["short", "tags"]
    with pytest.raises(UsageError, match="selects its devices"):
        open_engine("vllm", device="cuda:1")


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [("vllm", "vllm", "vllm"), ("ray", "ray", "ray"), ("openai", "openai", "openai")],
)
def test_missing_packages_are_reported_with_their_extra(monkeypatch, engine, module, extra):
    from lumina_cli.core.unicap.engines import openai

    openai._library.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"lumina-cli\[{extra}\]"):
        open_engine(engine, endpoint="http://x/v1" if engine == "openai" else None)


def test_florence_receives_english_task_prompts(tmp_path, lumina, photos):
    save_florence(tmp_path / "model")
    engine = open_engine("transformers", str(tmp_path / "model"), "cpu")
    assert (engine.languages, engine.structured, engine.reads_text) == (("en",), None, False)
    inputs = engine._inputs([question(), question()])
    text = engine.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert "What does the image describe?" in text
    answers = engine.answer([question(), question()])
    assert [answer.tokens <= 40 for answer in answers] == [True, True]
    code, _, err = lumina(*photos, "--model", tmp_path / "model", "--langs", "de", "--device", "cpu")
    assert (code, err[-1]) == (2, "lumina caption: this model supports en, not de")


def test_answers_of_florence_become_captions_and_tags():
    assert (
        florence.read("</s><s>The image shows a red car on a road.</s>", "medium") == "A red car on a road."
    )
    assert (
        florence.read("<s>car<loc_1><loc_2><loc_3><loc_4>ball<loc_1><loc_2>car<loc_5>", "tags") == "car, ball"
    )


def test_clip_scores_every_caption_and_reports_truncated_ones(tmp_path, lumina, photos, capsys):
    from transformers import CLIPModel, CLIPProcessor

    save_clip(tmp_path / "clip")
    words = (photos[0], "--engine", "noop", "--levels", "short", "--langs", "en,de", "--device", "cpu")
    code, (row,), _ = lumina(*words, "--score", f"clip:{tmp_path / 'clip'}")
    assert code == 0
    model, processor = (
        CLIPModel.from_pretrained(tmp_path / "clip"),
        CLIPProcessor.from_pretrained(tmp_path / "clip"),
    )
    texts = [row["captions"][lang]["short"] for lang in ("en", "de")]
    inputs = processor(
        text=texts,
        images=plain_picture("red"),
        padding="max_length",
        truncation=True,
        max_length=24,
        return_tensors="pt",
    )
    wanted = model(**inputs).logits_per_text[:, 0] / model.logit_scale.exp()
    found = [row["caption_scores"][lang]["short"] for lang in ("en", "de")]
    assert found == pytest.approx(wanted.tolist(), abs=1e-4)
    run(["caption", *map(str, words), "--score", f"clip:{tmp_path / 'clip'}"])
    assert "2 scored by their first tokens only" in capsys.readouterr().err
    code, (row,), _ = lumina(*words, "--retries", 0, "--score", f"clip:{tmp_path / 'clip'}@0.99")
    assert [bad["code"] for bad in row["rejected_captions"]] == ["not there"] * 2


def test_each_sentence_of_a_caption_is_scored(tmp_path, monkeypatch):
    from lumina_cli.core.unicap.batch import CaptionTask
    from lumina_cli.core.unicap.items import CaptionItem
    from lumina_cli.core.unicap.scoring.clip import open_scorer

    save_clip(tmp_path / "clip")
    texts = ["a red car.", "a blue ball on a floor.", "a red car. a blue ball on a floor."]

    def judged(words):
        item = CaptionItem(0, {}, plain_picture("red"))
        tasks = [CaptionTask(item, "en", str(number), "", text=text) for number, text in enumerate(texts)]
        open_scorer(words, "cpu").judge(tasks)
        return item.scores.get("en", {}), tasks

    scores, _ = judged(f"clip:{tmp_path / 'clip'}")
    assert scores["0"] != scores["1"]
    assert scores["2"] == pytest.approx((scores["0"] + scores["1"]) / 2, abs=2e-4)
    between = sum(scores[number] for number in "01") / 2
    worst = texts[min((0, 1), key=lambda number: scores[str(number)])]
    kept, tasks = judged(f"clip:{tmp_path / 'clip'}@{between}")
    assert len(kept) == 1
    assert tasks[2].reason.endswith(f"({worst!r})")


@pytest.mark.slow
def test_the_nano_scorer_names_undetected_objects():
    from lumina_cli.core.nano.captions import LANGUAGES, describe_scene
    from lumina_cli.core.nano.rendering.renderer import render
    from lumina_cli.core.nano.scene import KINDS, draw_scene
    from lumina_cli.core.unicap.batch import CaptionTask
    from lumina_cli.core.unicap.items import CaptionItem
    from lumina_cli.core.unicap.scoring.clip import open_scorer

    scenes = [draw_scene(77, number) for number in range(12)]
    tasks = []
    for number, (scene, image) in enumerate(zip(scenes, render(scenes), strict=True)):
        item = CaptionItem(number, {}, image.image)
        there = {thing.kind for thing in scene.things}
        absent = next(kind for kind in KINDS if kind not in there)
        texts = {lang: describe_scene(scene, lang, "short", number) for lang in LANGUAGES}
        tasks += [CaptionTask(item, lang, "short", "", text=text) for lang, text in texts.items()]
        tasks.append(CaptionTask(item, "en", "tags", absent, text=f"{texts['en']}, a red {absent}"))
    open_scorer("nano").judge(tasks)
    true = [task for task in tasks if task.level == "short"]
    assert sum(task.reason is None for task in true) >= 0.95 * len(true)
    assert {task.item.scores[task.lang]["short"] for task in true if task.reason is None} == {1.0}
    for task in tasks:
        if task.level == "tags":
            assert task.reason.code == "not there"
            assert task.ask in task.reason
    with pytest.raises(UsageError, match="between 0 and 1"):
        open_scorer("nano@3")

"""`lumina caption` end to end with tiny models: messages, exit codes and captions."""

import io
import json
import shutil
import sys

import pytest
from PIL import Image
from tiny_captioner import LEARNT, plain_picture, save_llava, save_qwen2_vl

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.engines.transformers import Captioner
from lumina_cli.core.unicap.prompts import instruction
from lumina_cli.core.unicap.protocol import Question


def questions(images, seeds, max_tokens, attempt=0):
    text = instruction("short", "en")
    pairs = zip(images, seeds, strict=True)
    return [Question(text, "short", "en", seed, max_tokens, image, attempt) for image, seed in pairs]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen2_vl(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    plain_picture("red").save(folder / "a.png")
    plain_picture("blue").save(folder / "b.jpg")
    plain_picture("red", (90, 30)).save(folder / "c.webp")
    return folder


def pipe(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.slow
def test_a_folder_becomes_rows_with_captions(lumina, llava, photos):
    code, rows, err = lumina(photos, "--model", llava, "--levels", "short,tags", "--batch", 2)
    assert (code, err) == (0, [])
    assert [row["image"] for row in rows] == [str(photos / name) for name in ("a.png", "b.jpg", "c.webp")]
    for row, colour in zip(rows, ("red", "blue", "red"), strict=True):
        assert row["captions"] == {"en": {level: LEARNT["en", level][colour] for level in ("short", "tags")}}


def test_all_languages_and_levels_are_captioned_and_rejects_listed(lumina, llava, photos):
    code, rows, err = lumina(photos / "b.jpg", "--model", llava, "--levels", "short,tags", "--langs", "en,de")
    assert (code, err) == (0, [])
    captions, failed = rows[0]["captions"], rows[0].get("rejected_captions", [])
    assert captions["de"]["short"] == "ein blaues Bild"
    assert captions["en"] == {"short": "a plain blue picture", "tags": "blue, plain"}
    written = [(lang, level) for lang, texts in captions.items() for level in texts]
    written += [(bad["lang"], bad["level"]) for bad in failed]
    assert sorted(written) == [("de", "short"), ("de", "tags"), ("en", "short"), ("en", "tags")]


def test_rows_from_stdin_keep_their_keys_and_captions(lumina, llava, photos, monkeypatch):
    row = {"image": str(photos / "a.png"), "score": 3, "captions": {"zh": {"short": "一张红色的图片"}}}
    pipe(monkeypatch, json.dumps(row) + "\n")
    code, rows, _ = lumina("-", "--model", llava, "--levels", "short")
    assert code == 0
    by = {"captioned_by": {"en": {"short": f"transformers:{llava}"}}}
    assert rows == [row | {"captions": row["captions"] | {"en": {"short": "a plain red picture"}}} | by]


def test_several_sources_are_captioned_in_order(lumina, llava, photos):
    code, rows, _ = lumina(photos / "b.jpg", photos / "a.png", "--model", llava, "--levels", "short")
    assert code == 0
    assert [row["captions"]["en"]["short"] for row in rows] == ["a plain blue picture", "a plain red picture"]


def test_rendered_scenes_are_captioned_and_omitted_images_reported(lumina, llava):
    code, rows, err = lumina("nano:2", "--model", llava, "--levels", "short", "--retries", 0)
    assert code == 0
    assert err == [
        "lumina caption: images of nano:2 are not files, so its rows have no 'image'; to keep both, run "
        "`lumina shard nano:2 DIR`, then `lumina caption DIR`"
    ]
    assert [row["key"] for row in rows] == ["nano-0-000000", "nano-0-000001"]
    assert "image" not in rows[0]
    assert "picture" in rows[0]["captions"]["en"]["short"]


def test_scenes_in_shards_are_captioned_and_packed_again(lumina, llava, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["shard", "nano:2", "first"]) == 0
    capsys.readouterr()
    code, rows, err = lumina("first", "--model", llava, "--levels", "short", "--retries", 0)
    assert (code, err) == (0, [])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["shard", "rows.jsonl", "second"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_bad_images_are_skipped_and_too_many_exit_with_3(lumina, llava, photos):
    whole = (photos / "b.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("no picture")
    words = (photos, "--model", llava, "--levels", "short")
    code, rows, err = lumina(*words)
    assert (code, len(rows)) == (3, 5)
    bad = {row["image"]: row for row in rows if "error" in row}
    assert set(bad) == {f"{photos}/cut.jpg", f"{photos}/text.png"}
    assert bad[f"{photos}/text.png"]["error"].startswith(f"{photos}/text.png: truncated or not an image")
    assert not any("captions" in row or "captioned_by" in row for row in bad.values())
    assert err[0].startswith(f"lumina caption: skipped {photos}/cut.jpg: truncated or not an image")
    assert err[1].startswith(f"lumina caption: skipped {photos}/text.png: truncated or not an image")
    assert err[2:] == ["lumina caption: 2 of 5 images cannot be opened (40%); --max-bad-rate allows 5%"]
    assert lumina(*words, "--max-bad-rate", 0.4)[0] == 0


def test_a_row_whose_image_file_is_missing_is_skipped(lumina, llava, photos, monkeypatch):
    pipe(monkeypatch, json.dumps({"image": "gone.png"}) + "\n")
    code, rows, err = lumina("-", "--model", llava, "--levels", "short", "--max-bad-rate", 1)
    assert (code, rows) == (
        0,
        [{"image": "gone.png", "error": "gone.png: no such image", "code": "missing"}],
    )
    assert err == ["lumina caption: skipped gone.png: no such image"]


def test_a_row_without_an_image_is_skipped_with_its_line(lumina, llava, photos, monkeypatch):
    pipe(monkeypatch, json.dumps({"image": str(photos / "a.png")}) + '\n{"img": "b.png"}\n')
    code, rows, err = lumina("-", "--model", llava, "--levels", "short", "--max-bad-rate", 0.5)
    reason = "line 2 has no 'image', only img; name its column, as in FILE?image=COLUMN"
    assert (code, len(rows), err) == (0, 2, [f"lumina caption: skipped {reason}"])
    assert rows[1]["error"] == reason


def test_an_earlier_error_of_a_row_is_kept(lumina, photos, monkeypatch):
    row = {"image": str(photos / "a.png"), "error": "too dark", "captions": {"en": {"short": "an old one"}}}
    pipe(monkeypatch, json.dumps(row) + "\n")
    code, rows, err = lumina("-", "--engine", "noop", "--max-bad-rate", 1)
    assert (code, rows, err) == (0, [row], ["lumina caption: skipped too dark"])


@pytest.mark.parametrize("derive", ["picture", "text"])
def test_preexisting_captions_are_kept_or_counted_and_the_engine_named(lumina, photos, tmp_path, derive):
    (photos / "a.txt").write_text("an old caption")
    words = (photos, "--engine", "noop", "--levels", "detailed,short", "--langs", "en,de", "--derive", derive)
    code, (stats,), _ = lumina(*words, "--replace", "--out", tmp_path / "new.jsonl")
    assert (code, stats["questions"], stats["replaced"]) == (0, 12, 1)
    code, (stats,), _ = lumina(*words, "--out", tmp_path / "default.jsonl")
    assert (code, stats["questions"], stats["kept"]) == (0, 11, 1)
    code, (stats,), _ = lumina(*words, "--keep", "--out", tmp_path / "kept.jsonl")
    assert (code, stats["questions"], "replaced" in stats) == (0, 11, False)
    new, kept = (
        json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[0]) for name in ("new", "kept")
    )
    every = dict.fromkeys(("en", "de"), dict.fromkeys(("detailed", "short"), "noop"))
    assert new["captioned_by"] == every
    assert kept["captions"] == {**new["captions"], "en": {**new["captions"]["en"], "short": "an old caption"}}
    assert kept["captioned_by"] == {**every, "en": {"detailed": "noop"}}
    assert (tmp_path / "default.jsonl").read_bytes() == (tmp_path / "kept.jsonl").read_bytes()
    again = (tmp_path / "kept.jsonl", *words[1:], "--keep", "--out", tmp_path / "again.jsonl")
    code, (stats,), _ = lumina(*again)
    assert (code, stats["questions"], stats["calls"]) == (0, 0, 0)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "kept.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--levels", "shrot"], 2, "unknown level 'shrot'; choose from detailed, medium, short, tags"),
        (["--levels", ","], 2, "no level given; choose from detailed, medium, short, tags"),
        (["--langs", "en,xx"], 2, "unknown language 'xx'; give codes such as en, zh, ja, ru, de"),
        (
            ["--domain", "photo"],
            2,
            "unknown domain 'photo'; choose from auto, natural, synthetic, document, panels",
        ),
        (["--derive", "words"], 2, "unknown derive 'words'; choose from picture, text, once"),
        (["--split", "3/3"], 2, "split is '3/3', but must be I/N, such as 0/4, with I from 0 to N - 1"),
        (["--engine", "noop:x"], 2, "engine 'noop:x': only ray takes another engine, such as ray:nano"),
        (
            ["--engine", "noop", "--endpoint", "http://x"],
            2,
            "--endpoint applies to --engine openai, not to noop",
        ),
        (["--engine", "noop", "--langs", "fr"], 2, "this model supports en, zh, ja, ru, de, not fr"),
        (["--engine", "noop", "--score", "clop"], 2, "unknown scorer 'clop'; did you mean 'clip'?"),
        (
            ["--engine", "noop", "--out", "s3://bucket/rows.jsonl"],
            2,
            "--out s3:/bucket/rows.jsonl is remote and cannot be appended to; choose a local file",
        ),
        (
            ["--engine", "foo"],
            2,
            "unknown captioner 'foo'; choose from transformers, openai, vllm, ray, nano",
        ),
        (
            ["--engine", "nop"],
            2,
            "unknown captioner 'nop'; choose from transformers, openai, vllm, ray, nano",
        ),
        (["--engine", "ray:foo"], 2, "engine 'ray:foo': ray supports transformers, openai, vllm, nano"),
        (["--engine", "nanoo"], 2, "unknown captioner 'nanoo'; did you mean 'nano'?"),
        (["--engine", "transformer"], 2, "unknown captioner 'transformer'; did you mean 'transformers'?"),
        (["--model", "no/such/folder"], 1, "no/such/folder: no such folder, and not a hub id (owner/name)"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(lumina, photos, words, code, message):
    assert lumina(photos, *words) == (code, [], [f"lumina caption: {message}"])


def test_a_missing_source_is_reported_before_the_model_is_loaded(lumina, tmp_path):
    code, rows, err = lumina(tmp_path / "gone", "--model", "no/such/folder")
    assert (code, rows, len(err)) == (1, [], 1)
    assert err[0].startswith(f"lumina caption: {tmp_path}/gone: no such source")


def test_an_unreachable_hub_suggests_a_folder(lumina, photos, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = lumina(photos, "--model", "nobody/no-such-model")
    assert code == 1
    assert err == [
        "lumina caption: nobody/no-such-model is not on this machine and cannot be downloaded from the hub; "
        "pass --model FOLDER of an image-text-to-text model, or --engine nano or openai"
    ]


def test_help_and_names_need_no_torch():
    import subprocess

    code = "import sys, lumina_cli.cli.caption.command, lumina_cli.cli.bench.attention; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_an_answer_depends_on_its_seed_and_not_on_the_batch(qwen):
    captioner = Captioner(qwen)
    images = [plain_picture("red"), plain_picture("blue", (90, 30)), Image.new("RGB", (30, 90))]
    asked = questions(images, [1, 2, 3], 12)
    together = captioner.answer(asked)
    assert together == [captioner.answer([one])[0] for one in asked]
    assert captioner.answer(questions(images, [4, 5, 6], 12)) != together
    assert captioner.answer(questions(images, [1, 2, 3], 12, attempt=2)) != together


def test_batches_mix_lengths_and_questions_without_images(qwen):
    captioner = Captioner(qwen)
    shorter, longer = questions([plain_picture("red")] * 2, [1, 1], 4)[0], questions([None], [2], 9)[0]
    for groups in (captioner._groups, lambda asked: [[0, 1], [2]]):
        captioner._groups = groups
        answers = captioner.answer([shorter, questions([plain_picture("red")], [1], 7)[0], longer])
        assert [answer.tokens for answer in answers] == [4, 7, 9]
        assert not any(answer.finished for answer in answers)
        assert answers[1].text.startswith(answers[0].text[:-2])


def test_a_model_with_video_input_loads_without_torchvision(qwen):
    captioner = Captioner(qwen)
    assert captioner.processor.video_processor is None
    (answer,) = captioner.answer(questions([plain_picture("red")], [0], 5))
    assert not answer.finished


def test_an_unsupported_model_is_rejected(tiny_folder):
    with pytest.raises(LuminaError, match=r"is a gemma2\w* model, which does not take images"):
        Captioner(str(tiny_folder / "text_encoder"))


def test_missing_or_truncated_weights_are_rejected(llava, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llava, tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "norm" in name)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(LuminaError, match=r"has 1 missing weights, such as .*norm"):
        Captioner(str(folder))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LuminaError, match="is not a model folder that transformers can load"):
        Captioner(str(folder))


def test_a_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(LuminaError, match="is not a model folder that transformers can load"):
        Captioner(str(tmp_path))

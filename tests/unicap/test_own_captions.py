"""One's own instruction, prefixes, and captions as .txt files."""

import json

import pytest
from local_endpoint import Endpoint, said
from PIL import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.unicap.engines import noop
from lumina_cli.core.unicap.items import CaptionRequest
from lumina_cli.core.unicap.prompts import add_prefix

TEXT, TAGS = noop.TEXTS["en"], noop.TAGS["en"]


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.jpg", "sub/c.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (len(name), 0, 0)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def endpoint():
    server = Endpoint(lambda *_: (200, said("Rex, a photo of a dog")))
    yield server
    server.close()


def texts_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def questions_of(server):
    return [request["messages"][0]["content"][1]["text"] for request, _ in server.seen]


def test_an_instruction_replaces_the_question_and_its_length(lumina, photos, endpoint, tmp_path):
    words = (photos / "a.png", "--engine", "openai", "--endpoint", endpoint.url)
    code, (row,), _ = lumina(*words, "--instruction", "Name the dog.")
    assert (code, row["captions"]) == (0, {"en": {"detailed": "Rex, a photo of a dog"}})
    (tmp_path / "ask.txt").write_text("Name the {level} dog in {language}.\n", encoding="utf-8")
    lumina(
        *words,
        "--instruction",
        tmp_path / "ask.txt",
        "--levels",
        "short,tags",
        "--langs",
        "en,de",
        "--retries",
        0,
    )
    assert sorted(questions_of(endpoint)[1:]) == [
        f"Name the {level} dog in {lang}." for level in ("short", "tags") for lang in ("English", "German")
    ]
    assert questions_of(endpoint)[0] == "Name the dog."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--instruction", "Name it.", "--levels", "short,tags"], "--instruction asks for one caption, but --levels has 2 values"),
        (["--instruction", "Name it.", "--langs", "en,de"], "--instruction asks for one caption, but --langs has 2 values"),
        (["--instruction", " "], "--instruction is empty; give a text or a file with text"),
        (["--instruction", "Name it.", "--derive", "once"], "--derive once has a question of its own"),
        (["--instruction", "gone.txt"], "--instruction gone.txt: no such file"),
        (["--instruction", "Name it.", "--engine", "nano"], "this model only answers its own questions; omit --instruction"),
    ],
)  # fmt: skip
def test_an_instruction_must_fit_the_request(lumina, photos, words, message):
    code, rows, err = lumina(photos, "--engine", "noop", *words)
    assert (code, rows) == (1 if "gone" in message else 2, [])
    assert err[-1].startswith(f"lumina caption: {message}")


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("ohwx dog", "ohwx dog, a dog"),
        ("ohwx dog,", "ohwx dog, a dog"),
        ("In the style of X:", "In the style of X: a dog"),
        ("photo of ", "photo of a dog"),
        ("A dog", "a dog"),
        ("", "a dog"),
    ],
)
def test_a_prefix_is_joined_once(prefix, text):
    assert add_prefix("a dog", prefix) == text
    assert add_prefix(text, prefix) == text


def test_new_captions_begin_with_the_prefix_and_kept_ones_do_not(lumina, photos):
    (photos / "a.txt").write_text("my dog")
    code, rows, _ = lumina(photos, "--engine", "noop", "--levels", "short,tags", "--prefix", "ohwx")
    assert code == 0
    assert rows[0]["captions"]["en"] == {"short": "my dog", "tags": f"ohwx, {TAGS}"}
    assert rows[1]["captions"]["en"] == {"short": f"ohwx, {TEXT}", "tags": f"ohwx, {TAGS}"}


def test_captions_become_text_files_next_to_the_images(lumina, photos):
    (photos / "b.txt").write_text(
        "a person wrote this one, about twenty words long, so that it is of the medium level, not short"
    )
    code, rows, err = lumina(photos, "--engine", "noop", "--levels", "short", "--sidecars")
    assert (code, len(rows)) == (0, 3)
    texts = texts_in(photos)
    assert texts == {"a.txt": f"{TEXT}\n", "b.txt": texts["b.txt"], "sub/c.txt": f"{TEXT}\n"}
    assert texts["b.txt"].startswith("a person wrote")
    assert (
        err[-1]
        == "lumina caption: 2 .txt files written, 1 existing ones with other text kept (--replace replaces them)"
    )
    code, rows, err = lumina(photos, "--engine", "noop", "--levels", "short", "--sidecars", "--replace")
    assert texts_in(photos)["b.txt"] == f"{TEXT}\n"
    assert err[-1] == "lumina caption: 1 .txt files written"


def test_text_files_and_rows_go_to_a_folder(lumina, photos, tmp_path):
    out = tmp_path / "out"
    words = (photos, "--engine", "noop", "--levels", "tags", "--sidecars", "--out", out)
    code, (stats,), _ = lumina(*words)
    assert (code, stats["out"]) == (0, str(out / "captions.jsonl"))
    assert texts_in(out) == dict.fromkeys(("a.txt", "b.txt", "sub/c.txt"), f"{TAGS}\n")
    assert texts_in(photos) == {}
    assert len((out / "captions.jsonl").read_text().splitlines()) == 3
    (out / "sub/c.txt").unlink()  # as after a kill between a row and its file
    assert lumina(*words)[0] == 0
    assert len(texts_in(out)) == 3


def test_text_files_stay_in_the_folder_and_do_not_share_names(lumina, photos, tmp_path):
    Image.new("RGB", (9, 9)).save(photos / "a.webp")
    rows = [{"image": str(photos / "a.png"), "key": "../../x"}, {"image": str(photos / "a.webp"), "key": "x"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    code, _, err = lumina(
        tmp_path / "rows.jsonl", "--engine", "noop", "--levels", "short", "--sidecars", "--out", out
    )
    assert code == 0
    assert list(texts_in(out)) == ["x.txt"]
    assert not (tmp_path / "x.txt").exists()
    assert err[-1].endswith("1 images share a file with another image of the same name")


def test_images_that_are_not_files_need_a_folder(lumina, tmp_path):
    code, rows, err = lumina("nano:2", "--engine", "noop", "--levels", "short", "--sidecars")
    assert (code, rows) == (2, [])
    assert err[-1].endswith("nano-0-000000 is not a local file; give --out FOLDER")
    out = tmp_path / "out"
    assert lumina("nano:2", "--engine", "noop", "--levels", "short", "--sidecars", "--out", out)[0] == 0
    assert list(texts_in(out)) == ["nano-0-000000.txt", "nano-0-000001.txt"]


def test_requests_without_the_new_settings_keep_their_state():
    assert not {"replace", "instruction", "prefix"} & set(CaptionRequest().settings())
    assert CaptionRequest(("short",), prefix="x").settings()["prefix"] == "x"
    with pytest.raises(UsageError):
        CaptionRequest(instruction="")

"""Rows: reading, refusing with exact messages, writing."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, open_aside
from lumina_cli.core.io.jsonl import dump_row, get_captions, read_rows, write_rows


def test_round_trip(tmp_path):
    rows = [{"prompt": "ein Auto", "captions": {"zh": {"short": "汽车"}}}, {"n": 1, "x": None, "ok": True}]
    assert write_rows(tmp_path / "new" / "rows.jsonl", rows) == 2
    assert list(read_rows(tmp_path / "new" / "rows.jsonl")) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_ends_are_accepted(end):
    stream = io.BytesIO(("\ufeff" + end.join(['{"a": 1}', "", '{"a": 2}'])).encode())
    assert list(read_rows(stream)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"img": 1, "n": 2}',
            "line 2 has no 'image', only img, n; name its column, as in FILE?image=COLUMN",
        ),
        (b'{"image": ""}', "line 2: 'image' is empty"),
        (b'{"image": null}', "line 2: 'image' is empty"),
        (b'{"image": "a"', "line 2 is not a JSON object: Expecting ',' delimiter"),
        (b'{"image": "\xff"}', "line 2 is not UTF-8 text"),
        (b'{"a":' + b"[" * 100_000, "line 2 is not a JSON object: nested too deeply (more than 256 levels)"),
    ],
)
def test_bad_lines_are_named(line, message):
    with pytest.raises(LuminaError) as caught:
        list(read_rows(io.BytesIO(b'{"image": "first"}\n' + line + b"\n"), key="image"))
    assert str(caught.value) == message


def test_plain_lines_need_a_key():
    assert list(read_rows(io.StringIO("a cat\n"), key="prompt")) == [{"prompt": "a cat"}]
    with pytest.raises(LuminaError, match="line 1 is not a JSON object"):
        list(read_rows(io.StringIO("a cat\n")))


def test_a_file_is_named_in_errors(tmp_path):
    (tmp_path / "r.jsonl").write_text("[1]\n")
    with pytest.raises(LuminaError, match=r"r\.jsonl line 1: expected a JSON object, got list"):
        list(read_rows(tmp_path / "r.jsonl"))
    with pytest.raises(LuminaError, match="is not a regular file"):
        list(read_rows(tmp_path))


def test_values_that_json_lacks_are_converted():
    row = {
        "path": Path("a/b"),
        "nan": float("nan"),
        "array": np.arange(2),
        "number": np.float32(0.5),
        "set": {1},
    }
    row |= {"picture": Image.new("RGB", (1, 1)), "bytes": b"x", 3: (1, float("inf"))}
    found = json.loads(dump_row(row))
    assert found == {"path": "a/b", "nan": None, "array": [0, 1], "number": 0.5, "set": [1], "3": [1, None]}


def test_half_a_surrogate_pair_survives():
    row = json.loads('{"prompt": "\\ud83d"}')
    assert json.loads(dump_row(row).encode()) == row


def test_captions_are_copied_without_nulls():
    row = {"captions": {"en": {"short": "a cat", "tags": None}, "zh": None, "de": {"tags": None}}}
    assert get_captions(row) == {"en": {"short": "a cat"}}
    get_captions(row)["en"]["short"] = "a dog"
    assert row["captions"]["en"]["short"] == "a cat"
    assert get_captions({}) == get_captions({"captions": None}) == {}


@pytest.mark.parametrize(
    "captions", ["a cat", ["a cat"], {"en": "a cat"}, {"en": ["a cat"]}, {"en": {"short": 3}}]
)
def test_malformed_captions_are_refused(captions):
    with pytest.raises(LuminaError, match=r"^'captions' of line 2 is not \{language: \{level: text\}\}$"):
        get_captions({"captions": captions}, "line 2")


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")

    def rows():
        yield {"a": 1}
        raise error

    with pytest.raises(type(error)):
        write_rows(path, rows())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("rows.jsonl", "old\n")]


def test_atomic_write_keeps_the_suffix_and_removes_folders_too(tmp_path):
    with atomic_write(tmp_path / "a.png") as aside:
        assert aside.suffix == ".png"
        aside.write_bytes(b"x")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "folder") as aside:
        (aside / "no" / "such" / "folder").mkdir(parents=aside.mkdir() is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["n.jsonl", "n.ndjson"])
def test_a_broken_line_of_a_json_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "a cat"}\n"a dog"\nnot json\n')
    rows = read_rows(tmp_path / name, key="prompt")
    assert [next(rows), next(rows)] == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    with pytest.raises(LuminaError, match=rf"{name} line 3 is not a JSON object: Expecting value$"):
        next(rows)
    (tmp_path / "n.txt").write_text("not json\n")
    assert list(read_rows(tmp_path / "n.txt", key="prompt")) == [{"prompt": "not json"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": 3}', "'prompt' is 3, but must be text"),
        ('{"prompt": "a", "seed": "x"}', "'seed' is 'x', but must be a whole number"),
    ],
)
def test_a_bad_prompt_is_named_by_file_and_line(tmp_path, line, words):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(LuminaError, match=rf"p\.jsonl line 2: {words}$"):
        list(read_rows(tmp_path / "p.jsonl", key="prompt"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_on_close_is_reported():
    with (
        pytest.raises(LuminaError, match=r"^the disk is full: t\.tar$"),
        open_aside(Path("/dev/full"), "t.tar") as file,
    ):
        file.write(b"x")

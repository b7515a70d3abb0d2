"""Counts of a captioning run: rejected images, the total of the progress bar, rows in memory."""

import io
import json
import sys
import weakref

import pytest
from PIL import Image

from lumina_cli.cli import output
from lumina_cli.cli.app import run
from lumina_cli.core.unicap import run as captioning
from lumina_cli.core.unicap.engines import noop

NEVER = (
    "--engine",
    "noop",
    "--score",
    "nano",
    "--levels",
    "short",
    "--retries",
    0,
)  # no noop caption is there


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.slow
def test_images_without_a_valid_caption_count_as_bad(lumina, photos, tmp_path):
    out, told = tmp_path / "a.jsonl", "20 of 20 images got none of the requested captions (100%)"
    for _ in range(2):  # the second run finds them in the file
        code, rows, err = lumina(photos, *NEVER, "--out", out)
        assert (code, rows) == (3, [])
        assert err[-1] == f"lumina caption: {told}; --max-bad-rate allows 5%"
    assert lumina(photos, *NEVER, "--out", out, "--max-bad-rate", 1)[0] == 0
    code, rows, _ = lumina(photos, *NEVER)
    assert (code, len(rows)) == (3, 20)
    (photos / "bad.png").write_text("no picture")
    code, _, err = lumina(photos, *NEVER, "--max-bad-rate", 0.5)
    assert code == 3
    assert "1 of 21 images cannot be opened, 20 of 21 images got none of the requested captions" in err[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [7, 8, 13])
def test_a_resumed_run_counts_fully_rejected_images_once(lumina, photos, tmp_path, kept):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    lumina(photos, *NEVER, "--out", whole)
    out.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:kept]))
    (tmp_path / "torn.jsonl.state.json").write_bytes((tmp_path / "whole.jsonl.state.json").read_bytes())
    code, _, err = lumina(photos, *NEVER, "--out", out)
    assert code == 3
    assert "20 of 20 images got none" in err[-1]
    assert out.read_bytes() == whole.read_bytes()


def test_an_image_with_one_valid_caption_is_not_fully_rejected(lumina, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(noop.TEXTS, "de", "")
    words = ("--engine", "noop", "--levels", "short", "--langs", "en,de", "--retries", 0)
    path, out = tmp_path / "both.jsonl", tmp_path / "kept.jsonl"
    code, (stats,), _ = lumina(photos, *words, "--out", path)
    assert (code, stats["captions"], sum(stats["rejected"].values())) == (0, 20, 20)
    assert lumina(photos, *words, "--out", path)[0] == 0
    for words_more in (("--keep", "--out", out), ("--reuse", path, "--out", tmp_path / "again.jsonl")):
        assert lumina(path if "--keep" in words_more else photos, *words, *words_more)[0] == 0
    german = (*words[:4], "--langs", "de", "--retries", 0, "--keep", "--out", tmp_path / "german.jsonl")
    for _ in range(2):  # the English one is there, but was not asked for
        code, _, err = lumina(path, *german)
        assert (code, "20 of 20 images got none" in err[-1]) == (3, True)


def test_reasons_have_a_code_if_it_is_known(lumina, photos, tmp_path):
    (photos / "00.json").write_text('{"captions": "a car"}')
    (photos / "01.png").write_text("no picture")
    words = (photos, "--engine", "noop", "--levels", "short", "--max-bad-rate", 1)
    code, rows, err = lumina(*words)
    assert (code, [row.get("code") for row in rows[:3]]) == (0, ["captions", "not_an_image", None])
    assert f"skipped 'captions' of {photos / '00.png'}, key 00 is not {{language: {{level: text}}}}" in err[0]
    out = tmp_path / "a.jsonl"
    assert lumina(*words, "--out", out)[0] == 0
    left = [json.loads(line) for line in (tmp_path / "a.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [row["code"] for row in left] == ["captions", "not_an_image"]
    assert run(["shard", str(out), str(tmp_path / "s"), "--max-bad-rate", "1"]) == 0
    shared = [json.loads(line) for line in (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["code"], row["upstream"]) for row in shared] == [("captions", True), ("not_an_image", True)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_has_the_total_of_this_run(photos, tmp_path, monkeypatch):
    moves = []
    monkeypatch.setattr(output, "_open_bar", lambda: Bar(moves))
    monkeypatch.setattr(sys, "stderr", Terminal())
    words = ["caption", str(photos), "--engine", "noop", "--levels", "short", "--batch", "2"]
    assert run([*words, "--split", "0/4"]) == 0
    assert moves[0] == (0, 5), "before the first picture"
    assert moves[-1] == (5, 5)
    out = tmp_path / "a.jsonl"
    assert run([*words, "--out", str(out)]) == 0
    assert moves[-1] == (20, 20)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:7]))
    moves.clear()
    assert run([*words, "--out", str(out)]) == 0
    assert [moves[-1], moves[-2]] == [
        (14, 14),
        (12, 14),
    ]  # 6 are done, and the batch of the 7th is done again


class Bar:
    """Notes how a bar is moved."""

    def __init__(self, moves):
        self.moves, self.console = moves, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def add_task(self, label, total):
        return 0

    def update(self, task, completed, total, description=None, whole=None):
        self.moves.append((completed, total))

    def advance(self, task):
        pass

    def remove_task(self, task):
        pass


class Row(dict):
    """A dict that can be watched."""


def test_rows_written_to_a_file_are_not_kept_in_memory(photos, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []

    def rows(*_, **__):
        for number in range(50):
            row = Row(key=str(number))
            row_id = Held(row)
            alive.add(row_id)
            yield row
            del row, row_id
            most.append(len(alive))

    class Held:
        def __init__(self, row):
            row["held"] = self

    monkeypatch.setattr(captioning, "run_captions", rows)
    assert run(["caption", str(photos), "--engine", "noop", "--out", str(tmp_path / "a.jsonl")]) == 0
    assert len(most) == 50
    assert max(most) <= 2, max(most)

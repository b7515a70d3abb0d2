"""What a person sees of rows at a terminal: nested values in words, columns that fit, nothing cut unseen."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len

from lumina_cli.cli import output
from lumina_cli.cli.app import run
from lumina_cli.cli.tables import fit, words

LONG = "A red ball left of a blue cup. The ball is in front. It is a plain scene with soft shadows."
CAPTIONS = {"en": {"detailed": LONG, "short": "a red ball"}, "zh": {"short": "一个红色的球"}}
WROTE = {"en": {"detailed": "nano", "short": "nano"}, "zh": {"short": "nano"}}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """Returns the lines that something writes to a terminal of a width."""

    def show(width: int, write) -> list[str]:
        err = Terminal()
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "40")  # without it, a dumb terminal counts as 80 wide
        monkeypatch.setenv("TERM", "dumb")
        write()
        return err.getvalue().splitlines()

    return show


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"mine.jsonl": 0.73125}, "mine.jsonl: 0.7312"),
        ({"rows": "a.jsonl", "deep": {"x": [1, 2]}}, "rows: a.jsonl, deep.x: 1, 2"),
        (["json", "npy"], "json, npy"),
        ([{"code": "refusal"}, {"code": "cut"}], "code: refusal; code: cut"),
        (WROTE, "nano (all 3)"),
        ({"a": 0.5, "b": 0.5}, "a: 0.5, b: 0.5"),
        (12345.678, "12346"),
        (0.000012345, "1.234e-05"),
        (-1234.5, "-1234"),
        (True, "yes"),
        ({}, "-"),
        ([], "-"),
        ({"en": {}}, "-"),
        ({"model": None, "size": 3}, "size: 3"),
        ("a\nb\x1b[2J", "a b\\x1b[2J"),
        ({"\x1b[2J": "\x07"}, "\\x1b[2J: \\x07"),
        ("x" * 200, "x" * 119 + "…"),
    ],
)
def test_values_in_words(value, said):
    assert words(value) == said


def test_captions_tell_the_shortest_level_first():
    assert words(CAPTIONS, 400) == f"en.short: a red ball, en.detailed: {LONG}, zh.short: 一个红色的球"


@pytest.mark.parametrize("width", [80, 50, 40])
def test_captions_at_a_terminal(width, shown):
    row = {"key": "p00", "image": "photos/p00.jpg", "captions": CAPTIONS, "captioned_by": WROTE}
    lines = shown(width, lambda: output.table([row, row | {"key": "p01"}]))
    text = "\n".join(lines)
    assert max(map(cell_len, lines)) <= width
    assert "en.short: a" in text
    assert "photos/p00.jpg" in text
    assert "nano (all 3)" in text
    assert "…" in text
    assert ("captions: en.short" in text) == (width == 40)  # a list there, else a table


@pytest.mark.parametrize("width", [80, 50])
def test_columns_fill_a_terminal_and_no_more(width):
    rows = [{"file": "f" * 60, "said_per_100": 1.5, "n": 3, "wide": "一" * 40}]
    widths = fit(rows, width)
    assert sum(widths.values()) + 2 * (len(widths) - 1) == width
    assert widths["n"] == 1
    assert fit(rows, 30) is None
    assert fit([{"a": 1}], 30) == {"a": 1}


def test_numbers_stand_below_each_other(shown):
    lines = shown(60, lambda: output.table([{"n": 5, "name": "x"}, {"n": 12345, "name": "y"}]))
    assert [line.rstrip() for line in lines] == ["    n  name", "    5  x", "12345  y"]


@pytest.mark.parametrize("width", [120, 30])
def test_names_of_strangers_reach_no_terminal_as_they_are(width, shown):
    row = {"\x1b]0;pwn\x07": 1, "a\nb": {"\x1b[2J": "x"}, "n" * 500: 2, "last": 3}
    lines = shown(width, lambda: output.write_rows([dict(row)], label="rows"))
    text = "\n".join(lines)
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "n" * 60 not in text
    assert "\\x1b]0;" in text
    told = shown(width, lambda: output.write_rows([dict(row)], describe=lambda row: (1, 1, None)))
    assert not re.search("[\x07\x1b](?!\\[\\??[0-9;]*[hlKAm])", "".join(told))
    assert [line for line in told if "\\x1b]0;pwn\\x07 1" in line]


def test_spare_columns_go_first(shown):
    row = {"file": "some.jsonl", "kind": "en.detailed", "captions": 12, "agreement": 0.98}
    lines = shown(38, lambda: output.table([row], spare=("captions", "kind")))
    assert lines[0].split() == ["file", "kind", "agreement"]
    assert lines[-1] == "left out for want of room: captions; --json writes all"
    assert "captions" in shown(80, lambda: output.table([row], spare=("captions",)))[0]


@pytest.mark.parametrize("width", [80, 50])
def test_comparisons_are_a_table(width, shown, tmp_path):
    for name, texts in (("mine", ("a red ball", LONG)), ("theirs", ("a blue ball on a table", LONG))):
        rows = (
            f'{{"key": "k{i}", "captions": {{"en": {{"short": "{texts[0]}", "detailed": "{texts[1]}"}}}}}}\n'
            for i in range(3)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("mine", "theirs")]
    lines = shown(width, lambda: run(["eval", "captions", *files]))
    table = [line.split() for line in lines if re.match(r"(mine|theirs)\.jsonl", line)]
    assert [line[:2] for line in table] == [
        [f"{name}.jsonl", f"en.{level}"] for level in ("detailed", "short") for name in ("mine", "theirs")
    ]
    assert [line[-1] for line in table[:2]] == ["1", "1"]  # the agreement
    assert max(map(len, lines[: 1 + len(table)])) <= width
    assert lines[-1].startswith("left out for want of room: captions") == (width == 50)


@pytest.mark.parametrize("group", [[], ["shard"], ["eval"]])
def test_lists_of_verbs_are_whole_sentences_at_80_columns(group):
    words = [sys.executable, "-m", "lumina_cli", *group, "--help"]
    told = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}).stdout
    verbs = re.findall(r"(?m)^  \w+ .*", told.split("Commands:")[1].split("\n\n")[0])
    assert len(verbs) >= 4
    assert [line for line in verbs if not line.endswith(".")] == []

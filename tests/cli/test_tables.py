"""Tables on a terminal: nested values as text, columns that fit, a note for hidden columns."""

import io
import re
import sys

import pytest
from rich.cells import cell_len

from lumina_cli.cli import output
from lumina_cli.cli.app import run
from lumina_cli.cli.tables import fit_columns, format_value

LONG = "A red ball left of a blue cup. The ball is in front. It is a plain scene with soft shadows."
CAPTIONS = {"en": {"detailed": LONG, "short": "a red ball"}, "zh": {"short": "一个红色的球"}}
WROTE = {"en": {"detailed": "nano", "short": "nano"}, "zh": {"short": "nano"}}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """Return a function that returns the lines that a call writes to a terminal of a given width."""

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
    ("value", "text"),
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
def test_values_as_text(value, text):
    assert format_value(value) == text


def test_the_shortest_caption_comes_first():
    assert format_value(CAPTIONS, 400) == f"en.short: a red ball, en.detailed: {LONG}, zh.short: 一个红色的球"


@pytest.mark.parametrize("width", [80, 50, 40])
def test_captions_on_a_terminal(width, shown):
    row = {"key": "p00", "image": "photos/p00.jpg", "captions": CAPTIONS, "captioned_by": WROTE}
    other = {"key": "p01", "image": "photos/p01.jpg", "captions": {"en": {"short": LONG}}, "captioned_by": {}}
    lines = shown(width, lambda: output.print_table([row, other]))
    text = "\n".join(lines)
    assert max(map(cell_len, lines)) <= width
    assert "en.short: a" in text
    assert "photos/p00.jpg" in text
    assert "nano (all 3)" in text
    assert "…" in text
    assert ("captions: en.short" in text) == (width == 40)  # a list there, else a table


@pytest.mark.parametrize("width", [80, 50])
def test_columns_fill_a_terminal_and_no_more(width):
    rows = [{"file": "f" * 60, "density": 1.5, "n": 3, "wide": "一" * 40}]
    widths = fit_columns(rows, width)
    assert sum(widths.values()) + 2 * (len(widths) - 1) == width
    assert widths["n"] == 1
    assert fit_columns(rows, 30) is None
    assert fit_columns([{"a": 1}], 30) == {"a": 1}


def test_numbers_are_right_aligned(shown):
    lines = shown(60, lambda: output.print_table([{"n": 5, "name": "x"}, {"n": 12345, "name": "y"}]))
    assert [line.rstrip() for line in lines] == ["    n  name", "    5  x", "12345  y"]


@pytest.mark.parametrize("width", [120, 30])
def test_column_names_cannot_send_control_characters(width, shown):
    row = {"\x1b]0;pwn\x07": 1, "a\nb": {"\x1b[2J": "x"}, "n" * 500: 2, "last": 3}
    lines = shown(width, lambda: output.write_rows([dict(row)], label="rows"))
    text = "\n".join(lines)
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "n" * 60 not in text
    assert "\\x1b]0;" in text
    lines = shown(width, lambda: output.write_rows([dict(row)], describe=lambda row: (1, 1, None)))
    assert not re.search("[\x07\x1b](?!\\[\\??[0-9;]*[hlKAm])", "".join(lines))
    assert [line for line in lines if "\\x1b]0;pwn\\x07 1" in line]


def test_optional_columns_are_dropped_first(shown):
    row = {"file": "some.jsonl", "kind": "en.detailed", "captions": 12, "agreement": 0.98}
    lines = shown(38, lambda: output.print_table([row], optional=("captions", "kind")))
    assert lines[0].split() == ["file", "kind", "agreement"]
    assert lines[-1] == "terminal too narrow for captions; --wide shows all columns"
    assert "captions" in shown(80, lambda: output.print_table([row], optional=("captions",)))[0]


@pytest.mark.parametrize("width", [80, 50])
def test_caption_comparisons_are_a_table(width, shown, tmp_path):
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
    assert lines[-1].startswith("terminal too narrow for captions") == (width == 50)


SHEET = "pictures/00000-a-red-car-left-of-a-blue-ball-guidance-1-s0.png"
GRID = [
    {"prompt": "a red car left of a blue ball", "image": SHEET.replace("-1-", f"-{n}-"), "seed": 0, "number": 0,
     "model": "nano", "size": "128x128", "kernel": "sdpa", "cell": {"guidance": n}}
    for n in (1, 4)
]  # fmt: skip
STAGES = [
    {
        "stage": name,
        "steps": 10 * n,
        "size": 64 * n,
        "batch": 8 * n,
        "lr": 0.1 / n,
        "warmup": n,
        "decay": n * 100,
    }
    for n, name in enumerate(("low", "high", "hq"), 1)
]


@pytest.mark.parametrize("width", [200, 90, 40])
def test_paths_are_whole_and_on_one_line(width, shown):
    lines = shown(width, lambda: output.print_table(GRID))
    assert [line for line in lines if SHEET in line]


def test_what_all_rows_share_is_printed_once(shown):
    lines = shown(90, lambda: output.print_table(GRID))
    assert lines[0].startswith("all rows: prompt a red car left of a blue ball, seed 0, number 0, model nano")
    assert lines[1].split() == ["image", "cell"]
    assert len(lines) == 4


def test_many_columns_become_one_column_per_row(shown):
    lines = shown(40, lambda: output.print_table(STAGES))
    assert lines[0].split() == ["stage", "low", "high", "hq"]
    assert lines[1].split() == ["steps", "10", "20", "30"]
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize("width", [80, 30])
def test_wide_tables_are_not_cut(width, shown, monkeypatch):
    monkeypatch.setattr(output, "wide", True)
    text = "\n".join(
        shown(width, lambda: output.print_table([{"key": "a", "captions": CAPTIONS, "n": 1}] * 2))
    )
    assert f"en.detailed: {LONG}, zh.short: 一个红色的球" in text


def test_wide_is_taken_anywhere_on_the_line(lumina):
    for words in ("--wide doctor", "doctor --wide"):
        assert lumina(words)[0] == 0
        assert output.wide
    lumina("doctor")
    assert not output.wide


def test_a_status_line_is_replaced_by_the_first_output(shown):
    def load():
        output.show_status("loading nano")
        output.write_note("a note")

    assert shown(80, load) == ["loading nano", "\x1b[2Ka note"]  # a carriage return ends a line, too


def test_no_status_line_in_a_pipe(capsys):
    output.show_status("loading nano")
    assert capsys.readouterr().err == ""


def test_equal_notes_are_written_once_with_a_count(capsys):
    with output.single_notes():
        for note in ("a", "b", "a", "a"):
            output.write_note(note)
        assert capsys.readouterr().err == "a\nb\n"
    assert capsys.readouterr().err == "3 times: a\n"

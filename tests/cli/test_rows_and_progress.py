"""Rows from words, files and stdin; rows, tables, notes and progress bars out."""

import io
import sys

import pytest

from lumina_cli.cli import options, output
from lumina_cli.cli.options import read_rows
from lumina_cli.core.errors import LuminaError, UsageError

# Rows in


class Pipe(io.TextIOWrapper):
    def __init__(self, text: str):
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_words_become_rows():
    assert list(read_rows(["a cat", "two dogs"], "prompt")) == [
        {"prompt": "a cat"},
        {"prompt": "two dogs"},
    ]


@pytest.mark.parametrize("arguments", [["-"], [], None])
def test_stdin_is_read(arguments, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe('a cat\n{"prompt": "a dog", "id": 3}\n\n"a bird"\n'))
    rows = list(read_rows(arguments, "prompt"))
    assert rows == [{"prompt": "a cat"}, {"prompt": "a dog", "id": 3}, {"prompt": "a bird"}]


def test_files_of_rows_are_read_between_words(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    rows = read_rows(["zero", str(tmp_path / "p.txt")], "prompt")
    assert [row["prompt"] for row in rows] == ["zero", "one", "two"]


def test_a_prompt_may_end_like_a_file_of_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my prompts.txt").write_text("one\ntwo\n")
    prompts = ["my prompts.txt", "a note called todo.txt", "x " * 3000 + "end.txt", "a nul\0 and more.txt"]
    assert [row["prompt"] for row in read_rows(prompts, "prompt")] == ["one", "two", *prompts[1:]]


def test_suffixes_of_row_files_may_be_in_capitals(tmp_path):
    (tmp_path / "PR.CSV").write_text("prompt,seed\na cat,3\n")
    (tmp_path / "P.Jsonl").write_text('{"prompt": "a dog"}\n')
    rows = read_rows([str(tmp_path / "PR.CSV"), str(tmp_path / "P.Jsonl")], "prompt")
    assert list(rows) == [{"prompt": "a cat", "seed": 3}, {"prompt": "a dog"}]


@pytest.mark.parametrize(
    "name", ["notes.md", "cat", "photo.png", "my prompts.docx", "prompts.jsonl.gz", "P.YAML", "sub/"]
)
def test_an_existing_file_is_never_a_prompt(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("a red ball\n")
    kind = "folder" if name.endswith("/") else "file"
    with pytest.raises(LuminaError, match=f"^{name} is a {kind}, not a prompt, and not a file of prompts"):
        list(read_rows(["a dog", name], "prompt"))


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["-"], '{"img": 1}', "line 1 has no 'prompt', only img"),
        (["-"], "", "no prompts on stdin"),
        ([" "], "", "the prompt is empty"),
        (["gone.jsonl"], "", "gone.jsonl: no such file"),
    ],
)
def test_invalid_rows_are_named(arguments, stdin, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe(stdin))
    with pytest.raises(LuminaError) as caught:
        list(read_rows(arguments, "prompt"))
    assert str(caught.value) == message


def test_no_arguments_on_a_terminal_are_wrong_usage(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UsageError, match="no prompt given"):
        read_rows([], "prompt")


# Rows out


def test_rows_are_json_lines_in_a_pipe(capsys):
    assert output.write_rows(iter([{"a": 1, "ü": "日本"}, {"b": None}])) == 2
    assert capsys.readouterr() == ('{"a": 1, "ü": "日本"}\n{"b": null}\n', "")


def test_rows_are_written_one_by_one(capsys):
    seen = []

    def rows():
        for number in range(3):
            seen.append(capsys.readouterr().out)
            yield {"n": number}

    output.write_rows(rows())
    assert seen == ["", '{"n": 0}\n', '{"n": 1}\n']


@pytest.mark.parametrize("width", [200, 30])
def test_rows_are_a_table_at_a_terminal(width, monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "40")  # without it, a dumb terminal counts as 80 wide
    monkeypatch.setenv("TERM", "dumb")
    output.write_rows(
        iter([{"name": "[bold]x[/bold]", "score": 0.123456, "ok": True, "tags": {"en": 1}}] * 50)
    )
    assert out.getvalue() == ""
    shown = err.getvalue()
    assert "[bold]x[/bold]" in shown
    assert "0.1235" in shown
    assert "and 10 more" in shown


def test_the_table_is_shown_although_the_rows_fail(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")

    def rows():
        yield {"name": "first"}
        raise LuminaError("broken")

    with pytest.raises(LuminaError):
        output.write_rows(rows())
    assert "first" in err.getvalue()


def test_notes_are_one_clean_line(capsys):
    output.write_note("a\nb\x1b[2J")
    assert capsys.readouterr().err == "a b\\x1b[2J\n"


def test_progress_yields_its_items_and_is_silent_in_a_pipe(capsys):
    assert list(output.track_progress(range(3), "steps")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_notes_appear_above_nested_bars(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    for number in output.track_progress(output.track_progress(range(3), "inner", 3), "outer"):
        output.write_note(f"note {number}")
    assert all(f"note {number}\n" in err.getvalue() for number in range(3))
    assert output._bars == []


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.txt", "# first\na red ball\n  #second\n\na cup # three\n", ["a red ball", "a cup # three"]),
        ("P.TXT", "\ufeff# first\n#\na cup\n", ["a cup"]),
        ("q.txt", '"# quoted"\na cup\n', ["# quoted", "a cup"]),
    ],
)
def test_lines_of_prompt_files_that_begin_with_a_number_sign_are_comments(name, text, prompts, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    assert [row["prompt"] for row in options.read_rows([str(path)], "prompt")] == prompts
    assert options.count_rows([str(path)], "prompt") == len(prompts)
    skipped = {2: [f"{path}: skipped 2 comment lines, which begin with #"], 0: []}
    assert list(options.comment_notes([str(path), "a # b.txt c"])) == skipped[0 if name == "q.txt" else 2]


def test_only_text_files_of_prompts_have_comments(tmp_path):
    (tmp_path / "a.txt").write_text("# a\nb\n")
    (tmp_path / "b.csv").write_text("prompt\n# a\n")
    assert [row["image"] for row in options.read_rows([str(tmp_path / "a.txt")], "image")] == ["# a", "b"]
    assert [row["prompt"] for row in options.read_rows([str(tmp_path / "b.csv")], "prompt")] == ["# a"]

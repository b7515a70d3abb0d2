"""The command as people and pipes meet it: words, exit codes, help, closed pipes, rows."""

import errno
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer

import lumina_cli
from lumina_cli.cli import app as application
from lumina_cli.cli import output
from lumina_cli.cli.group import fallback
from lumina_cli.core.errors import LuminaError, MissingDependency, TooManyRejects, UsageError


def lumina(*args: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lumina_cli", *args], capture_output=True, text=True, **settings
    )


@pytest.fixture
def doctor_raises(monkeypatch):
    """Make `lumina doctor` raise whatever a test wants."""

    def install(error: BaseException):
        def broken(*_):
            raise error
            yield

        monkeypatch.setattr("lumina_cli.core.doctor.examine", broken)

    return install


def test_version(capsys):
    assert application.run(["--version"]) == 0
    assert capsys.readouterr().out == f"lumina {lumina_cli.__version__}\n"


def test_help_lists_the_verbs_in_the_order_of_the_pipeline(capsys):
    assert application.run(["--help"]) == 0
    text = capsys.readouterr().out.split("Commands:")[1]
    places = [text.index(f"\n  {verb} ") for verb in application.VERBS]
    assert places == sorted(places)


def test_no_word_shows_the_help_and_is_wrong_usage(capsys):
    assert application.run([]) == 2
    assert "Usage: lumina" in capsys.readouterr().err


@pytest.mark.parametrize("verb", application.VERBS)
def test_every_verb_has_help(verb, capsys):
    assert application.run([verb, "--help"]) == 0
    assert f"Usage: lumina {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["smaple"], "lumina: unknown verb 'smaple'; did you mean 'sample'?"),
        (["sample", "--sede", "1", "x"], "lumina sample: no option --sede; did you mean '--seed'?"),
        (["shard", "only"], "lumina shard: missing argument 'dest'"),
        (["convert", "a", "b", "--to", "flux"], "lumina convert: invalid value for '--to'"),
        (["shard", "verify"], "lumina shard: missing argument 'shards'"),
    ],
)
def test_wrong_usage_is_one_line(args, message, capsys):
    assert application.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LuminaError("the sky is green"), 1, "the sky is green"),
        (UsageError("no such thing"), 2, "no such thing"),
        (TooManyRejects("3 of 4"), 3, "3 of 4"),
        (MissingDependency("needs the extra [flash]"), 5, "needs the extra [flash]"),
        (LuminaError("two\nlines \x1b[31m"), 1, "two lines \\x1b[31m"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "the disk is full: x.png"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), 1, "x.png: Permission denied"),
        (MemoryError(), 1, "out of memory; a smaller size or batch needs less"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "ZeroDivisionError: division by zero (a bug; --debug shows where)",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "Broken pipe"),
    ],
)
def test_errors_are_one_line_with_their_code(error, code, message, doctor_raises, capsys):
    doctor_raises(error)
    assert application.run(["doctor"]) == code
    assert capsys.readouterr().err == f"lumina doctor: {message}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "nano", "out=a"], "; `lumina train out=a --resume` goes on"),
        (["train", "nano"], "; `lumina train out=RUN --resume` goes on"),
        (["caption", "photos", "--out=a.jsonl"], "; the same line goes on"),
        (["caption", "photos"], ""),  # a pipe cannot be gone on with
        (["shard", "photos", "data"], "; the same line goes on"),
        (["shard", "stats", "data"], ""),
        (["eval", "geneval"], ""),
    ],
)
def test_who_stops_a_command_learns_how_to_go_on(words, told, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(application, "get_command", lambda app: SimpleNamespace(main=stopped))
    assert application.run(words) == 130
    assert capsys.readouterr().err == f"lumina {words[0]}: interrupted{told}\n"


@pytest.mark.parametrize("args", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(args, doctor_raises, capsys):
    doctor_raises(LuminaError("broken"))
    assert application.run(args) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("lumina doctor: broken\n")


def test_debug_by_environment(doctor_raises, capsys, monkeypatch):
    monkeypatch.setenv("LUMINA_DEBUG", "1")
    doctor_raises(LuminaError("broken"))
    assert application.run(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_works_as_a_module():
    assert lumina("--version").stdout == f"lumina {lumina_cli.__version__}\n"
    result = lumina("shard", "nowhere", "dest")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("lumina shard: nowhere: no such source")


def test_a_closed_pipe_is_not_an_error(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "x" * 2000, "n": i}) + "\n" for i in range(2000)))
    code = (
        "from lumina_cli.cli import output, app; from lumina_cli.core.io.jsonl import read_rows; import sys;"
        "app.app.command('spill')(lambda: output.write_rows(read_rows(sys.argv[1]), True) and None);"
        "app.Verbs.resolve_command = app.TyperGroup.resolve_command; sys.exit(app.run(['spill']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(rows)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix can close a stream")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_shell_closed_is_like_an_empty_one(closed, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    code = "from lumina_cli.cli import output, app; app._open_closed_streams(); import sys;"
    code += "output.write_rows(output.read_rows(sys.argv[1:], 'prompt'), total=1); output.note('done')"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path / "p.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if " >&-" in f" {closed}" else '{"prompt": "a cat"}\n')
    assert done.stderr == ("" if "2>&-" in closed else "done\n")


def test_a_closed_stdout_is_no_bug():
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "lumina_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ENDED = """
import os, signal, sys, time
from lumina_cli.cli import app
from lumina_cli.core import doctor

def examine(*_):
    {before}
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        {after}
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # Slurm's, beside torchrun's
        print("cleaned up")
    yield

doctor.examine = examine
sys.argv[1:] = ["doctor"]
app.main()
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pass", "pass"),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "pass"),  # as in the background of a script
        # training has a handler of its own
        ("signal.signal(signal.SIGINT, lambda *_: None)", "raise KeyboardInterrupt"),
    ],
)
def test_sigterm_is_like_an_interrupt(before, after):
    command = [sys.executable, "-c", ENDED.format(before=before, after=after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (
        143, "cleaned up\n", "lumina doctor: terminated\n"
    )  # fmt: skip


LOST = """
import signal, sys
from lumina_cli.cli import app
from lumina_cli.core import doctor

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background has it ignored

class Loses:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def examine(*_):
    for number in range(9):
        yield {"check": str(number)}
        Loses()

doctor.examine = examine
sys.argv[1:] = ["doctor", "--json"]
app.main()
"""


def test_ctrl_c_in_a_destructor_is_heeded_at_the_next_row():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "lumina doctor: interrupted")
    assert done.stdout.splitlines() == ['{"check": "0"}']


FORKED = """
import os, signal, time
from lumina_cli.cli import app

app._handle_sigterm()
ready, tell = os.pipe()
child = os.fork()
if not child:
    os.write(tell, b"!")
    time.sleep(20)
    os._exit(0)
os.read(ready, 1)  # Python forgets signals that come while it forks
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_worker_ends_as_usual():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("-15\n", "")


def grouped() -> typer.Typer:
    group = typer.Typer(cls=fallback("run"), no_args_is_help=True, rich_markup_mode=None)

    @group.command()
    def run(words: list[str], deep: bool = False):
        typer.echo(f"run {' '.join(words)} {deep}")

    @group.command()
    def show(word: str):
        typer.echo(f"show {word}")

    return group


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a", "b"], "run a b False"),
        (["run", "a"], "run a False"),
        (["show", "a"], "show a"),
        (["--deep", "a"], "run a True"),
        (["run", "show"], "run show False"),
    ],
)
def test_a_group_falls_back_to_its_main_verb(args, said):
    from typer.testing import CliRunner

    result = CliRunner().invoke(grouped(), args)
    assert result.output == f"{said}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["shard", "scor", "data"],
            "lumina shard: no such source 'scor'; did you mean `lumina shard score`?",
        ),
        (["shard", "slect", "data", "x"], "no such source 'slect'; did you mean `lumina shard select`?"),
        (["eval", "caption", "a.jsonl"], "unknown benchmark 'caption'; did you mean `lumina eval captions`?"),
        (["eval", "geneva"], "unknown benchmark 'geneva'; did you mean 'geneval'?"),
        (["eval", "xyz"], "unknown benchmark 'xyz'; choose from geneval"),
        (["eval", "geneval"], "name what to score"),
    ],
)
def test_a_sub_verb_that_is_misspelt(args, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert application.run(args) == 2
    assert said in capsys.readouterr().err


def test_a_folder_with_nearly_the_name_of_a_sub_verb_is_a_source(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scor").mkdir()
    assert application.run(["shard", "scor", "data"]) == 1
    assert "scor holds no pictures" in capsys.readouterr().err
    assert application.run(["shard", "photos", "data"]) == 1
    assert "photos: no such source" in capsys.readouterr().err


def test_a_group_shows_its_own_help():
    from typer.testing import CliRunner

    assert "show" in CliRunner().invoke(grouped(), ["--help"]).output


# Rows in


class Pipe(io.TextIOWrapper):
    def __init__(self, text: str):
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_words_become_rows():
    assert list(output.read_rows(["a cat", "two dogs"], "prompt")) == [
        {"prompt": "a cat"},
        {"prompt": "two dogs"},
    ]


@pytest.mark.parametrize("arguments", [["-"], [], None])
def test_stdin_is_read(arguments, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe('a cat\n{"prompt": "a dog", "id": 3}\n\n"a bird"\n'))
    rows = list(output.read_rows(arguments, "prompt"))
    assert rows == [{"prompt": "a cat"}, {"prompt": "a dog", "id": 3}, {"prompt": "a bird"}]


def test_files_of_rows_are_read_between_words(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    rows = output.read_rows(["zero", str(tmp_path / "p.txt")], "prompt")
    assert [row["prompt"] for row in rows] == ["zero", "one", "two"]


def test_a_file_with_a_space_in_its_name_is_a_file_and_a_prompt_may_end_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my prompts.txt").write_text("one\ntwo\n")
    prompts = ["my prompts.txt", "a note called todo.txt", "x " * 3000 + "end.txt", "a nul\0 and more.txt"]
    assert [row["prompt"] for row in output.read_rows(prompts, "prompt")] == ["one", "two", *prompts[1:]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["-"], '{"img": 1}', "line 1 has no 'prompt', only img"),
        (["-"], "", "nothing to do: no prompt in stdin"),
        ([" "], "", "the prompt is empty"),
        (["gone.jsonl"], "", "gone.jsonl: no such file of rows"),
    ],
)
def test_bad_rows(arguments, stdin, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe(stdin))
    with pytest.raises(LuminaError) as caught:
        list(output.read_rows(arguments, "prompt"))
    assert str(caught.value) == message


def test_nothing_given_at_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UsageError, match="no prompt given"):
        output.read_rows([], "prompt")


# Rows out


def test_rows_are_json_lines_in_a_pipe(capsys):
    assert output.write_rows(iter([{"a": 1, "ü": "日本"}, {"b": None}])) == 2
    assert capsys.readouterr() == ('{"a": 1, "ü": "日本"}\n{"b": null}\n', "")


def test_rows_come_one_by_one(capsys):
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


def test_the_table_is_shown_though_the_rows_break(monkeypatch):
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
    output.note("a\nb\x1b[2J")
    assert capsys.readouterr().err == "a b\\x1b[2J\n"


def test_progress_passes_items_on_and_is_silent_in_a_pipe(capsys):
    assert list(output.progress(range(3), "steps")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_nested_bars(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    for number in output.progress(output.progress(range(3), "inner", 3), "outer"):
        output.note(f"said {number}")
    assert all(f"said {number}\n" in err.getvalue() for number in range(3))
    assert output._bars == []

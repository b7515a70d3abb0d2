"""Groups with a default command: `lumina shard SRC DEST`, and misspelled sub-commands."""

import pytest
import typer
from typer.testing import CliRunner

from lumina_cli.cli.group import default_command
from lumina_cli.cli.help import VerbApp


def make_group() -> typer.Typer:
    group = VerbApp(cls=default_command("run"))

    @group.command()
    def run(words: list[str], deep: bool = False):
        typer.echo(f"run {' '.join(words)} {deep}")

    @group.command()
    def show(word: str):
        typer.echo(f"show {word}")

    return group


@pytest.mark.parametrize(
    ("args", "output"),
    [
        (["a", "b"], "run a b False"),
        (["run", "a"], "run a False"),
        (["show", "a"], "show a"),
        (["--deep", "a"], "run a True"),
        (["run", "show"], "run show False"),
    ],
)
def test_a_group_runs_its_default_command(args, output):
    result = CliRunner().invoke(make_group(), args)
    assert result.output == f"{output}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("shard scor data", "lumina shard: no such source 'scor'; did you mean `lumina shard score`?"),
        ("shard slect data x", "no such source 'slect'; did you mean `lumina shard select`?"),
        ("eval caption a.jsonl", "unknown benchmark 'caption'; did you mean `lumina eval captions`?"),
        ("eval geneva", "unknown benchmark 'geneva'; did you mean 'geneval'?"),
        ("eval xyz", "unknown benchmark 'xyz'; choose from geneval"),
        ("preview data", "unknown command 'preview'; did you mean `lumina shard preview`?"),
        ("teacache", "unknown command 'teacache'; did you mean `lumina bench teacache`?"),
        ("smple x", "unknown command 'smple'; did you mean 'sample'?"),
        ("eval geneval", "pass exactly one of --model"),
    ],
)
def test_a_misspelled_sub_command_is_wrong_usage(command, message, lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = lumina(command)
    assert code == 2
    assert message in err


def test_a_folder_named_almost_like_a_sub_command_is_a_source(lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scor").mkdir()
    code, _, err = lumina("shard scor data")
    assert code == 1
    assert "scor contains no images" in err
    code, _, err = lumina("shard photos data")
    assert code == 1
    assert "photos: no such source" in err


def test_a_group_shows_its_own_help():
    assert "show" in CliRunner().invoke(make_group(), ["--help"]).output

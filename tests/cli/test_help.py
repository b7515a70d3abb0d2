"""Help pages: groups of options, examples, terminal widths, no heavy imports."""

import re
import shlex

import pytest
from typer.main import get_command

import lumina_cli
from lumina_cli.cli.app import VERBS, app
from lumina_cli.cli.help import split_examples, walk_commands

PAGES = {name: command for name, command, _ in walk_commands(get_command(app), "lumina")}
EXAMPLES = [
    (name, line) for name, command in PAGES.items() for line in split_examples(command.help)[1].splitlines()
]


def headings(page: str) -> list[str]:
    return re.findall(r"(?m)^(\S.*):$", page)


def test_version(lumina):
    assert lumina("--version") == (0, f"lumina {lumina_cli.__version__}\n", "")


def test_verbs_are_listed_in_pipeline_order(lumina):
    code, text, _ = lumina("--help")
    assert code == 0
    listed = re.findall(r"(?m)^  (\w+) ", text.split("Commands:")[1].split("\n\n")[0])
    assert tuple(listed) == VERBS


def test_no_arguments_print_the_help_and_exit_with_2(lumina):
    code, out, err = lumina("")
    assert (code, out) == (2, [])
    assert err.startswith("Usage: lumina")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_ends_with_two_to_four_examples(name, lumina):
    code, text, err = lumina(f"{name.removeprefix('lumina')} --help")
    assert (code, err) == (0, "")
    assert text.startswith(f"Usage: {name}")
    assert headings(text)[-1] == "Examples"
    examples = text.split("\nExamples:\n")[1].splitlines()
    assert 2 <= len(examples) <= 4
    assert all(line.startswith("  lumina ") for line in examples)


def test_options_of_sample_are_grouped_with_the_general_ones_last(lumina):
    assert headings(lumina("sample --help")[1]) == [
        "Arguments", "Image", "Plan", "Model", "Editing", "Speed and memory", "Output", "General options", "Examples",
    ]  # fmt: skip


def test_ungrouped_options_are_one_list(lumina):
    assert headings(lumina("shard pack --help")[1]) == ["Arguments", "Options", "Examples"]


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_the_terminal_except_for_examples(name, columns, lumina, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = lumina(f"{name.removeprefix('lumina')} --help")[1].split("\nExamples:\n")[0]
    assert [line for line in text.splitlines() if len(line) > columns] == []


def test_examples_are_not_wrapped(lumina, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    line = '  lumina shard select data large --where "shorter >= 512" --no-duplicates near'
    assert line in lumina("shard select --help")[1].splitlines()


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_parses(name, line):
    for words in split_pipeline(line):
        if words[0] != "lumina":
            continue
        command, context = get_command(app), None
        while hasattr(command, "commands"):
            context = command.make_context(words[0], words[1:], parent=context)
            word, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            words = [word, *rest]
        command.make_context(words[0], words[1:], parent=context)


def split_pipeline(line: str) -> list[list[str]]:
    """Return the words of every command of a shell pipeline, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == "|":
            commands.append([])
        elif word == ">":
            break
        else:
            commands[-1].append(word)
    return commands


@pytest.mark.parametrize("name", PAGES)
def test_every_option_and_argument_has_a_description(name):
    missing = [each.name for each in PAGES[name].params if not each.help and not each.hidden]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in PAGES if hasattr(PAGES[name], "commands")])
def test_lists_of_commands_are_whole_sentences(name, lumina, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = lumina(f"{name.removeprefix('lumina')} --help")[1].split("Commands:\n")[1].split("\n\n")[0]
    sentences = re.sub(r"\n {4,}", " ", listed).splitlines()
    assert len(sentences) >= 4
    assert [line for line in sentences if not line.endswith(".")] == []

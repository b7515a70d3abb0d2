"""Every command that the pages show parses: commands, options, names of table entries, settings and recipes."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from lumina_cli.cli.app import app
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.recipe import load_recipe, packaged_recipes
from lumina_cli.core.registry import BENCHMARKS, CAPTIONERS, JUDGES, KERNELS, SCORES
from lumina_cli.core.sampling.output.grid_axes import read_grid
from lumina_cli.core.training.config import Recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
]
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|\$")  # FILE, N, ...: not a value


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(script: str) -> list[list[str]]:
    """Return the words of each lumina command in a shell script, without the word `lumina`."""
    script = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", script, flags=re.S).replace("\\\n", " ")
    found = []
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        pieces: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("();<>|&"):
                pieces.append([])
            else:
                pieces[-1].append(word)
        for piece in pieces:
            words = piece[piece.index("lumina_cli") :] if "lumina_cli" in piece else piece
            if words and words[0] in ("lumina", "lumina_cli"):
                found.append(words[1:])
    return found


def parsed(words: list[str]) -> dict:
    """Return the parameters of a command as click parses them; raises what a wrong one raises."""
    command, context = get_command(app), None
    while True:
        context = command.make_context(command.name or "lumina", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return {**context.params, "verb": context.command_path}
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def check_names(values: dict) -> None:
    """Raise if a value names an entry, a setting or a recipe that does not exist."""
    many = {
        "engine": lambda name: CAPTIONERS[name.removeprefix("ray:")],
        "preset": lambda name: name.endswith(".yaml") or find_preset(name),
        "backend": lambda name: KERNELS.load("attention").implementations[name],
    }
    for name, check in many.items():
        found = values.get(name) or []
        for value in [found] if isinstance(found, str) else found:
            check(value)
    single = {
        "plan": read_settings,
        "grid": read_grid,
        "cache": lambda text: text == "off" or read_settings(f"cache={text}"),
        "benchmark": BENCHMARKS.__getitem__,
        "judge": JUDGES.__getitem__,
        "scores": lambda text: [name == "caption" or SCORES[name] for name in text.split(",")],
    }
    for name, check in single.items():
        if values.get(name):
            check(values[name])


def check_training(words: list[str]) -> None:
    """Raise if the settings of `lumina train` do not fit the recipe that they follow."""
    recipes = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word and not word.startswith("out=")]
    if recipes and recipes[0] in packaged_recipes():
        load_recipe(recipes[0], Recipe, settings)


PAGES_WITH_COMMANDS = [page for page in PAGES if any(commands(block) for block in blocks(page, "bash"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_parses(page):
    for block in blocks(page, "bash"):
        for words in commands(block):
            if any(PLACEHOLDER.fullmatch(word) for word in words):
                continue
            values = parsed(words)
            if page.name != "extending.md":  # its names are those of the package that it shows
                check_names(values)
            if values["verb"].endswith("train"):
                check_training(values.get("words") or [])


def test_an_invalid_option_is_detected():
    for words in (["sample", "x", "--sise", "16:9"], ["shard", "pack"], ["sample", "x", "--count", "no"]):
        with pytest.raises(Exception, match=r"(?i)option|parameter|integer"):
            parsed(words)
    with pytest.raises(KeyError):
        check_names(parsed(["caption", "photos", "--engine", "nan0"]))

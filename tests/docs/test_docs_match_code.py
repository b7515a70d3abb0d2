"""The documentation matches the commands, the schemas, the registries and the files."""

import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from lumina_cli.cli.app import app
from lumina_cli.core import registry
from lumina_cli.core.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
TABLES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_reference"))["PAGES"]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def schema_of(part: str):
    return import_module(registry.PARTS.load(part).__module__).SCHEMA


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_pages_are_up_to_date(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert (ROOT / "docs" / "reference" / name).read_text() == REFERENCE[name](), "run `make docs`"


@pytest.mark.parametrize("name", REFERENCE)
def test_every_row_of_the_reference_has_a_description(name):
    rows = re.findall(r"^\| .* \|$", REFERENCE[name](), re.M)
    assert len(rows) > 20
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize("part", registry.PARTS)
def test_the_reference_lists_every_setting_of_a_recipe(part):
    page = REFERENCE["recipes.md"]()
    section = page.split(f"## {part}\n")[1].split("\n## ")[0]
    assert not [name for name in schema_of(part).model_fields if f"| `{name}` |" not in section]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_registered_name_is_documented(table):
    text = "\n".join(page.read_text() for page in PAGES)
    assert not [name for name in table if name not in text]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_existing_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_every_recipe_is_valid_and_starts_with_a_description():
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text()
        assert text.startswith("# "), path.name
        part = re.search(r"^part: (\w+)", text, re.M)
        settings = load_recipe(str(path), schema_of(part.group(1) if part else "transformer"), [])
        assert settings.part in registry.PARTS


def commands(command, name="lumina"):
    """Yield (name, options) of every command; a group also takes the options of its default subcommand."""
    context = command.make_context(name, [], resilient_parsing=True)
    options = {word for one in command.get_params(context) for word in (*one.opts, *one.secondary_opts)}
    inner = [
        found for word in getattr(command, "commands", {}) for found in commands_below(command, name, word)
    ]
    main = f"{name} {getattr(command, 'main_verb', '')}"
    yield name, options.union(*(more for other, more in inner if other == main))
    yield from inner


def commands_below(group, name, word):
    return list(commands(group.commands[word], f"{name} {word}"))


def test_examples_use_only_commands_and_options_that_exist():
    known = dict(commands(get_command(app)))
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^lumina .*$", text, re.M):
            for piece in re.split(r"\s\|\s|\s&&\s", re.split(r"\s#\s", line)[0]):
                words = piece.split()
                if not words or words[0] != "lumina":
                    continue
                name = next(n for n in (" ".join(words[:i]) for i in (3, 2, 1)) if n in known)
                assert name != "lumina" or words[1].startswith(("-", "[")), f"{page.name}: {line}"
                for option in re.findall(r"(?<!\S)--[a-z][\w-]*", piece):
                    assert option in known[name] | known["lumina"], f"{page.name}: {line}"


def extending_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)


def test_the_solver_example_works_when_pasted(tmp_path):
    example, line = extending_blocks("python")[-2:]
    assert line.strip() in (ROOT / "lumina_cli" / "core" / "registry.py").read_text()
    path = tmp_path / "pasted.py"
    path.write_text(example)
    assert list(runpy.run_path(str(path))["euler"](lambda x, t: 2.0, 0.0, [0, 0.5, 1])) == [1.0, 2.0]


def test_the_package_example_adds_its_names(tmp_path, monkeypatch):
    project = tomllib.loads(extending_blocks("toml")[0])["project"]
    (tmp_path / "lumina_extras.py").write_text(extending_blocks("python")[0])
    info = tmp_path / "lumina_extras-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    solver = registry.Registry("solver", "lumina.solvers", {}).load("ralston")
    assert (solver.order, solver.calls) == (2, 2)
    *_, end = solver(lambda x, t: t, 0.0, [0, 0.5, 1])
    assert end == pytest.approx(0.5)
    score = registry.Registry("score", "lumina.scores", {}).load("brightness")(None)
    assert score([Image.new("RGB", (4, 4), "white")]) == [255.0]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_the_entry_point_groups_are_documented(table):
    assert f"`{table.group}`" in (ROOT / "docs" / "extending.md").read_text()

"""The documentation tells the truth about the commands, the tables and the files."""

import re
import runpy
from pathlib import Path

import pytest

from lumina_cli.core import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
TABLES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


def test_the_page_of_commands_is_up_to_date(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]
    assert (ROOT / "docs" / "cli.md").read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_name_on_the_command_line_is_documented(table):
    text = "\n".join(page.read_text() for page in PAGES)
    assert not [name for name in table if name not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_every_recipe_is_readable_and_says_what_it_is():
    from importlib import import_module

    from lumina_cli.core.recipe import load_recipe

    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text()
        assert text.startswith("# "), path.name
        part = re.search(r"^part: (\w+)", text, re.M)
        trainer = registry.PARTS.load(part.group(1) if part else "transformer")
        settings = load_recipe(str(path), import_module(trainer.__module__).SCHEMA, [])
        assert settings.part in registry.PARTS


def test_examples_name_only_verbs_and_options_that_exist():
    known = (ROOT / "docs" / "cli.md").read_text()
    for page in PAGES:
        for line in re.findall(r"^lumina .*$", page.read_text(), re.M):
            assert f"## `lumina {line.split()[1]}`" in known, line
            for option in re.findall(r"(?<!\S)--[\w-]+", line):
                assert option in known, line


def test_the_example_of_a_solver_works_when_pasted(tmp_path, monkeypatch):
    example, line = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)[:2]
    assert line.strip() in (ROOT / "lumina_cli" / "core" / "registry.py").read_text()
    path = tmp_path / "pasted.py"
    path.write_text(example)
    assert list(runpy.run_path(str(path))["euler"](lambda x, t: 2.0, 0.0, [0, 0.5, 1])) == [1.0, 2.0]

"""docs/reference/inputs.md: each row has a result and names an existing test; quoted messages occur in the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "inputs.md"


def rows_of(text: str) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of each body row of the page's tables."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if cells != ["input", "result", "message", "test"]:
                found.append((number, cells))
    return found


ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


@cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@cache
def literals() -> str:
    """Return all string literals of the package, with a wildcard mark where a value is inserted."""
    texts = []
    for path in sorted((ROOT / "lumina_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize(("number", "cells"), ROWS, ids=[f"line {number}" for number, _ in ROWS])
def test_each_row_is_backed(number, cells):
    """`input | read, converted or refused | quoted fragment of the message | path::test`."""
    assert len(cells) == 4, f"line {number} has {len(cells)} cells"
    _, result, message, tests = cells
    assert re.match(r"(read|converted|refused)\b", result), f"line {number}: {result}"
    if result.startswith("refused"):
        assert message, f"line {number}: a refused input needs its message"
    for fragment in re.findall(r"`([^`]+)`", message):
        assert fragment in literals(), f"line {number}: no code prints {fragment!r} (write … for a value)"
    names = re.findall(r"`([^`]+)::([^`]+)`", tests)
    assert names, f"line {number} names no test"
    for path, name in names:
        assert name in functions_of(ROOT / "tests" / path), f"line {number}: tests/{path} has no {name}"


def test_the_page_has_rows_in_every_section():
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert not [section.splitlines()[0] for section in sections if not rows_of(section)]

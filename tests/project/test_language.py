"""Plain language: docstrings, comments, help, messages and documentation are free of the banned idioms."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import lumina_cli

PACKAGE = Path(lumina_cli.__file__).parent
ROOT = PACKAGE.parent
CODE = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [
    path
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name != "log.md"  # dated notes stay as they were written
]
BANNED = {
    r"\b(re)?told\b": "reported, or the fact itself",
    r"\btell(s|ing)?\b": "report, distinguish, state",
    r"\banew\b": "again, or rewrite / regenerate",
    r"\b(is|are|was|were) no (?!longer\b|more\b|worse\b|larger\b|smaller\b|greater\b|less\b)": "is not a",
    r"\bof which\b": "split the sentence",
    r"\b(whoever|whatever (?!happens))": "any process, each value",
    r"\bheed(s|ed)?\b": "check, respect",
    r"\b(has|have|had) not (?!been\b|yet\b|changed\b|finished\b|run\b|started\b)": "does not have",
    r"\bthat (is|are) there\b": "existing, present",
    r"\bas it says\b": "as documented",
    r"\bgoes? on (?!to\b)": "continues, resumes",
    r"\bgoing on\b": "resuming",
    r"\bgone on\b": "resumed",
    r"\bcomes? to nothing\b": "fails, produces nothing",
    r"\bby itself\b": "automatically, alone",
    r"\bin place of\b": "instead of",
    r"\bnobody\b": "no process, not",
    r"\bsays? (?!`)": "states, contains, specifies",
    r"\bforgets?\b": "drop, reset",
    r"\bwishe?s?\b": "request, setting",
    r"\bpictures?\b": "image",
    r"\b8[ -]bits?\b(?! (grey|gray|color|colour|PNG|per|sRGB|RGB|image|channel|L\b))": "int8",
    r"\bbeside\b": "next to, in addition to",
    r"\blie(s)?\b": "is stored, is",
    r"\bmakes? (\w+ )?of (it|them)\b": "rewrite",
}
PATTERNS = {re.compile(pattern, re.IGNORECASE): better for pattern, better in BANNED.items()}
QUOTED = re.compile(r"`[^`]*`|\"[^\"]*\"|\bpictures/|--pictures\b|<[^>]+>|\]\([^)]*\)")


def texts_of(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of docstrings, comments, and the strings of help, errors and notes of a file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.append((value.lineno, value.value))
        if isinstance(node, ast.Raise | ast.Call):
            found += list(_messages(node))
    return found


def _messages(node: ast.Raise | ast.Call):
    """Yield (line, text) of what a call prints: `help=` of options, arguments of errors and of notes."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        parts = [word.value for word in node.keywords if word.arg in ("help", "epilog")]
        if name in ("note", "LuminaError") or name.endswith(("Error", "Note")):
            parts += node.args
    else:
        parts = [node.exc] if node.exc is not None else []
    for part in parts:
        for each in ast.walk(part):
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and " " in each.value:
                yield each.lineno, each.value


def idioms_in(text: str) -> list[str]:
    """Return the banned idioms of a text, each with what to write instead; code in quotes is skipped."""
    plain = QUOTED.sub(" ", text)
    return [
        f"{match.group(0).strip()!r} -> {better}"
        for pattern, better in PATTERNS.items()
        for match in pattern.finditer(plain)
    ]


def test_the_check_finds_idioms_and_accepts_plain_text():
    assert idioms_in("Draw it anew; this is no file")
    assert idioms_in("The cache is no longer valid and has not changed since; see `tells`.") == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_is_written_in_plain_language(path):
    found = {line: idioms for line, text in texts_of(path) if (idioms := idioms_in(text))}
    assert not found, "\n".join(f"line {line}: {', '.join(idioms)}" for line, idioms in sorted(found.items()))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_of_tests_are_written_in_plain_language(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert not idioms_in(text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_written_in_plain_language(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {n: idioms for n, line in enumerate(text.splitlines(), 1) if (idioms := idioms_in(line))}
    assert not found, "\n".join(f"line {line}: {', '.join(idioms)}" for line, idioms in found.items())

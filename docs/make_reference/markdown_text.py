"""Markdown tables and escaped prose, shared by the generators of reference pages."""

import re
from html import escape

CODE = re.compile(r"(`+[^`]+`+)")
SPECIAL = re.compile(r"[<*\[\\]|(?<!\w)_|_(?!\w)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")


def prose(text: str) -> str:
    """Escape Markdown outside code spans, join lines, and set option names as code."""
    parts = CODE.split(" ".join(text.split()))
    for i in range(0, len(parts), 2):
        words = OPTION.split(SPECIAL.sub(r"\\\g<0>", parts[i]))
        parts[i] = "".join(f"`{word}`" if n % 2 else word for n, word in enumerate(words))
    return "".join(parts)


def code(text: object) -> str:
    """Return a code span."""
    fence = "``" if "`" in str(text) else "`"
    return f"{fence}{text}{fence}"


def block(text: str, language: str) -> str:
    """Return a fenced code block."""
    return f"```{language}\n{text.rstrip()}\n```"


def table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; columns that are empty in every row are left out."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    lines = [[headers[i] for i in kept], ["---"] * len(kept)]
    lines += [[without_pipes(row[i]) for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_pipes(cell: str) -> str:
    """Escape pipes in a table cell; dialects disagree on pipes in code spans, so those become HTML."""
    parts = CODE.split(cell)
    for i, part in enumerate(parts):
        if "|" in part:
            text = escape(part.strip("`"), quote=False) if i % 2 else part
            parts[i] = f"<code>{text}</code>".replace("|", "&#124;") if i % 2 else part.replace("|", "&#124;")
    return "".join(parts)

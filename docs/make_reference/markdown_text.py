"""Markdown tables and escaped prose, shared by the generators of reference pages."""

import re

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
    lines += [[row[i].replace("|", "\\|") for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Which captions of rows an engine wrote, and which the rows brought with them.

Rows of `lumina caption` say so in "captioned_by": {language: {level: engine}}. Where any row of a file has
it, a caption that it does not name came with its row, and is no work of the engine.
"""

from collections.abc import Iterable

from lumina_cli.core.io.jsonl import get_captions

Kind = tuple[str, str]  # language and level
BROUGHT = "brought"  # the key under which `written` puts the captions that are not the engine's


def caption_provenance(rows: Iterable[dict]) -> list[dict]:
    """Return rows with the captions of engines as "captions" and the others as "brought".

    Rows of a file that names no engine are as they were: nobody knows who wrote their captions.
    """
    rows = list(rows)
    known = any(isinstance(row.get("captioned_by"), dict) for row in rows)
    return [_split(row) if known and BROUGHT not in row else row for row in rows]


def existing_kinds(rows: Iterable[dict]) -> set[Kind]:
    """Return the kinds of captions that rows out of `written` brought."""
    return {(lang, level) for row in rows for lang, texts in row.get(BROUGHT, {}).items() for level in texts}


def _split(row: dict) -> dict:
    by = row.get("captioned_by")
    by = by if isinstance(by, dict) else {}
    sides: tuple[dict, dict] = ({}, {})
    for lang, texts in get_captions(row).items():
        engines = by.get(lang) if isinstance(by.get(lang), dict) else {}
        for level, text in texts.items():
            sides[level not in engines].setdefault(lang, {})[level] = text
    return {**row, "captions": sides[0], BROUGHT: sides[1]}

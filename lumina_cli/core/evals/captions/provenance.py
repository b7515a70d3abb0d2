"""Provenance of captions: written by an engine, or already in the input rows.

`lumina caption` records the engine in "captioned_by": {language: {level: engine}}. If any row of a file has
this key, captions that it does not list were in the input.
"""

from collections.abc import Iterable

from lumina_cli.core.io.jsonl import get_captions

CaptionType = tuple[str, str]  # language and level
BROUGHT = "brought"  # key of the captions that no engine wrote


def caption_provenance(rows: Iterable[dict]) -> list[dict]:
    """Return rows with the captions of engines under "captions" and the others under "brought".

    If no row names an engine, the rows are returned unchanged.
    """
    rows = list(rows)
    known = any(isinstance(row.get("captioned_by"), dict) for row in rows)
    return [_split(row) if known and BROUGHT not in row else row for row in rows]


def preexisting_types(rows: Iterable[dict]) -> set[CaptionType]:
    """Return the types of captions under "brought", in rows from `caption_provenance`."""
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

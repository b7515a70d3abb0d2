"""Reuse of the captions of an earlier output file, for a source that has changed since.

Rows match if they have the same "image" text, or the same "key" if they have no image. The index takes 16
bytes per row of the earlier file: its offset, and eight bytes of the hash of its name.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.jsonl import get_captions, get_error, is_in_memory
from lumina_cli.core.limits import parse_json

Row = dict[str, Any]
REUSED = "_taken_captions"  # temporary key of a row: {language: [level]} copied from the earlier file


class EarlierCaptions:
    """The rows of an earlier `--out` file, by image.

    Rows with an error, without captions, or torn by a kill are ignored; the first of several rows of an image
    counts. Existing captions that people wrote are kept; with `keep` all of them, with `replace` none.

    Raises:
        LuminaError: if the file does not exist.
    """

    def __init__(self, path: str | Path, keep: bool = False, replace: bool = False):
        self.path, self.keep, self.replace = Path(path), keep, replace
        if not self.path.is_file():
            raise LuminaError(f"--reuse {self.path}: no such file")
        names, offsets = array("Q"), array("Q")
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if name := _name(_parse_captioned(line)):
                    names.append(_hash(name))
                    offsets.append(offset)
                offset += len(line)
        order = _sort_order(names)
        self._names = array("Q", (names[i] for i in order))
        self._offsets = array("Q", (offsets[i] for i in order))
        self._file = self.path.open("rb")

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, row: Row) -> Row:
        """Return a row with the captions of the matching earlier row merged in, listed under REUSED.

        Only captions that an engine wrote are copied, because the source has the others as well. A row whose
        captions have an invalid shape is returned unchanged; opening it reports the error.
        """
        if get_error(row) or not (earlier := self._find(row)):
            return row
        try:
            own = get_captions(row)
        except LuminaError:
            return row
        reused = _engine_captions(earlier)
        if not self.replace:
            reused = _missing(own if self.keep else people_captions(row), reused)
        if not reused:
            return row
        by, scores = (_only(earlier.get(name), reused) for name in ("captioned_by", "caption_scores"))
        note = {lang: list(levels) for lang, levels in reused.items()}
        return {**merge_captions(row, reused, by, scores), REUSED: note}

    def _find(self, row: Row) -> Row | None:
        name = _name(row)
        if not name:
            return None
        wanted = _hash(name)
        place = bisect_left(self._names, wanted)
        while place < len(self._names) and self._names[place] == wanted:
            self._file.seek(self._offsets[place])
            found = _parse_captioned(self._file.readline())
            if _name(found) == name:
                return found
            place += 1
        return None


def reused_captions(row: Row) -> dict[str, list[str]]:
    """Return the reused captions of a row: {language: [level]}."""
    return row.get(REUSED) or {}


def without_reuse_note(row: Row) -> Row:
    """Return a row without the temporary key REUSED."""
    return {name: value for name, value in row.items() if name != REUSED} if REUSED in row else row


def add_earlier_captions(earlier: EarlierCaptions | None, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows with the captions of an earlier run merged in."""
    if earlier is None:
        yield from rows
        return
    with closing(earlier):
        yield from map(earlier.add, rows)


def _parse_captioned(line: bytes) -> Row:
    try:
        row = parse_json(line)
        return row if isinstance(row, dict) and not get_error(row) and get_captions(row) else {}
    except (ValueError, LuminaError):
        return {}


def _name(row: Row) -> str | None:
    image = row.get("image")
    if image is not None and not is_in_memory(image):
        return f"image {image}"
    return f"key {row['key']}" if row.get("key") else None


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest())


def _sort_order(names: array) -> Any:
    """Return the stable sort order of `names`."""
    import numpy as np

    return np.argsort(np.frombuffer(names, np.uint64), kind="stable") if names else ()


def people_captions(row: Row) -> dict[str, dict[str, str]]:
    """Return the captions of a row that people wrote: {language: {level: text}}.

    These are captions that "captioned_by" does not list. Captions of rows with a "scene" are generated.
    """
    if row.get("scene"):
        return {}
    by = row.get("captioned_by")
    return _without(without_empty(get_captions(row)), by if isinstance(by, dict) else {})


def without_empty(captions: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return captions without empty ones."""
    return {
        lang: {level: text for level, text in texts.items() if text.strip()}
        for lang, texts in captions.items()
    }


def _engine_captions(row: Row) -> dict[str, dict[str, str]]:
    """Return the captions that an engine wrote; all captions if the row names no engine."""
    captions = {
        lang: {level: text for level, text in texts.items() if text.strip()}
        for lang, texts in get_captions(row).items()
    }
    by = row.get("captioned_by")
    return _only(captions, by) if isinstance(by, dict) else captions


def _only(values: Any, wanted: dict) -> dict[str, dict]:
    """Return the entries of {language: {level: value}} whose language and level are in `wanted`."""
    values = values if isinstance(values, dict) else {}
    kept = {
        lang: {level: value for level, value in levels.items() if level in wanted.get(lang, ())}
        for lang, levels in values.items()
        if isinstance(levels, dict) and isinstance(wanted.get(lang, ()), dict)
    }
    return {lang: levels for lang, levels in kept.items() if levels}


def _missing(own: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the captions in `found` that `own` does not have."""
    kept = {
        lang: {level: text for level, text in texts.items() if not own.get(lang, {}).get(level, "").strip()}
        for lang, texts in found.items()
    }
    return {lang: texts for lang, texts in kept.items() if texts}


def merge_captions(row: Row, captions: dict[str, dict], by: dict[str, dict], scores: dict[str, dict]) -> Row:
    """Return a row with new captions, their engines (`by`) and their scores merged in.

    All three dicts are {language: {level: value}}. The engine and score of a replaced caption are dropped.

    Raises:
        LuminaError: if the existing captions have an invalid shape.
    """
    row = {**row, "captions": _merge(get_captions(row), captions)}
    for name, new in (("captioned_by", by), ("caption_scores", scores)):
        if not captions:
            continue
        if merged := _merge(_without(row.get(name), captions), new):
            row[name] = merged
        else:
            row.pop(name, None)
    return row


def _without(values: Any, gone: dict[str, dict]) -> dict[str, dict]:
    """Return {language: {level: value}} without the entries in `gone`."""
    kept = {
        lang: {level: value for level, value in levels.items() if level not in (gone.get(lang) or ())}
        for lang, levels in (values if isinstance(values, dict) else {}).items()
        if isinstance(levels, dict)
    }
    return {lang: levels for lang, levels in kept.items() if levels}


def _merge(old: dict[str, dict], new: dict[str, dict]) -> dict[str, dict]:
    merged = {lang: dict(levels) for lang, levels in old.items()}
    for lang, levels in new.items():
        merged.setdefault(lang, {}).update(levels)
    return merged

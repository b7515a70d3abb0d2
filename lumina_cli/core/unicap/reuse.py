"""Captions of an earlier run taken over, where the source is no longer the one that it was begun with.

Rows are about the same picture where their "image" is the same text, or their "key" where they have no image.
Held are 16 bytes a row of the earlier file: where it begins, and eight bytes of the name's hash.
"""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.jsonl import get_captions, get_error, is_in_memory

Row = dict[str, Any]
TAKEN = "_taken_captions"  # of a row on its way: {language: [level]} that came from the earlier file


class EarlierCaptions:
    """The rows of an earlier `--out` file, by the picture that they are about.

    A row that failed, has no captions, or is torn (the last one of a run that was killed) is as if it were
    not there; of several about one picture the first counts. With `keep` a row's own captions stay, and only
    those that it lacks are taken. Raises LuminaError where there is no such file.
    """

    def __init__(self, path: str | Path, keep: bool = False):
        self.path, self.keep = Path(path), keep
        if not self.path.is_file():
            raise LuminaError(f"--reuse {self.path}: no such file of rows")
        names, offsets = array("Q"), array("Q")
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if name := _name(_captioned(line)):
                    names.append(_hash(name))
                    offsets.append(offset)
                offset += len(line)
        order = _sorted(names)
        self._names = array("Q", (names[i] for i in order))
        self._offsets = array("Q", (offsets[i] for i in order))
        self._file = self.path.open("rb")

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, row: Row) -> Row:
        """Return a row with the captions of its earlier one over its own, noted under TAKEN.

        Of captions that the earlier row itself brought nothing is taken: the source has them, too. A row
        whose own captions have another shape stays as it is: whoever opens it says so.
        """
        if get_error(row) or not (earlier := self._find(row)):
            return row
        try:
            own = get_captions(row)
        except LuminaError:
            return row
        taken = _written(earlier)
        if self.keep:
            taken = _lacking(own, taken)
        if not taken:
            return row
        by, scores = (_only(earlier.get(name), taken) for name in ("captioned_by", "caption_scores"))
        noted = {lang: list(levels) for lang, levels in taken.items()}
        return {**with_captions(row, taken, by, scores), TAKEN: noted}

    def _find(self, row: Row) -> Row | None:
        name = _name(row)
        if not name:
            return None
        wanted = _hash(name)
        place = bisect_left(self._names, wanted)
        while place < len(self._names) and self._names[place] == wanted:
            self._file.seek(self._offsets[place])
            found = _captioned(self._file.readline())
            if _name(found) == name:
                return found
            place += 1
        return None


def taken_of(row: Row) -> dict[str, list[str]]:
    """Return what of a row's captions was taken over: {language: [level]}."""
    return row.get(TAKEN) or {}


def without_note(row: Row) -> Row:
    """Return a row as it goes out."""
    return {name: value for name, value in row.items() if name != TAKEN} if TAKEN in row else row


def added_to(earlier: EarlierCaptions | None, rows: Iterable[Row]) -> Iterator[Row]:
    """Pass rows on with what an earlier run wrote about their pictures."""
    if earlier is None:
        yield from rows
        return
    with closing(earlier):
        yield from map(earlier.add, rows)


def _captioned(line: bytes) -> Row:
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and not get_error(row) and get_captions(row) else {}
    except (ValueError, RecursionError, LuminaError):
        return {}


def _name(row: Row) -> str | None:
    image = row.get("image")
    if image is not None and not is_in_memory(image):
        return f"image {image}"
    return f"key {row['key']}" if row.get("key") else None


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest())


def _sorted(names: array) -> Any:
    """Return the order that sorts `names`, equal ones as they come."""
    import numpy as np

    return np.argsort(np.frombuffer(names, np.uint64), kind="stable") if names else ()


def _written(row: Row) -> dict[str, dict[str, str]]:
    """Return a row's captions that an engine wrote; all where it does not tell."""
    captions = {
        lang: {level: text for level, text in texts.items() if text.strip()}
        for lang, texts in get_captions(row).items()
    }
    by = row.get("captioned_by")
    return _only(captions, by) if isinstance(by, dict) else captions


def _only(values: Any, wanted: dict) -> dict[str, dict]:
    """Return those of {language: {level: value}} whose language and level are in `wanted`, too."""
    values = values if isinstance(values, dict) else {}
    kept = {
        lang: {level: value for level, value in levels.items() if level in wanted.get(lang, ())}
        for lang, levels in values.items()
        if isinstance(levels, dict) and isinstance(wanted.get(lang, ()), dict)
    }
    return {lang: levels for lang, levels in kept.items() if levels}


def _lacking(own: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return those captions found for which a row has no text of its own."""
    kept = {
        lang: {level: text for level, text in texts.items() if not own.get(lang, {}).get(level, "").strip()}
        for lang, texts in found.items()
    }
    return {lang: texts for lang, texts in kept.items() if texts}


def with_captions(row: Row, captions: dict[str, dict], by: dict[str, dict], scores: dict[str, dict]) -> Row:
    """Return a row with new captions over its own, and who wrote them and how well they fit, where known.

    Of a caption that is replaced the old writer and the old score go with it. All three dicts are {language:
    {level: value}}. Raises LuminaError where the row's own captions have another shape.
    """
    row = {**row, "captions": _over(get_captions(row), captions)}
    for name, new in (("captioned_by", by), ("caption_scores", scores)):
        if not captions:
            continue
        if told := _over(_without(row.get(name), captions), new):
            row[name] = told
        else:
            row.pop(name, None)
    return row


def _without(values: Any, gone: dict[str, dict]) -> dict[str, dict]:
    """Return {language: {level: value}} without the languages and levels in `gone`."""
    kept = {
        lang: {level: value for level, value in levels.items() if level not in gone.get(lang, ())}
        for lang, levels in (values if isinstance(values, dict) else {}).items()
        if isinstance(levels, dict)
    }
    return {lang: levels for lang, levels in kept.items() if levels}


def _over(old: dict[str, dict], new: dict[str, dict]) -> dict[str, dict]:
    merged = {lang: dict(levels) for lang, levels in old.items()}
    for lang, levels in new.items():
        merged.setdefault(lang, {}).update(levels)
    return merged

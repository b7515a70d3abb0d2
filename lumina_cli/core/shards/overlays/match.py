"""Match rows to samples of shards, and set the rows aside on disk by shard.

A row matches the sample that its "image" names: "SHARDS/000000.tar#key.png", or the file that the sample was
packed from. Otherwise it matches the sample with its "key", or the only one whose file is called like the key
("cats/tom", "tom.png" or "tom").

Memory: rows that name tars need memory for a few thousand rows while they are set aside, and for the rows of
one shard while they are read back. Other rows also need the keys and file names of all samples.
"""

import hashlib
import json
import math
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import with_captions
from lumina_cli.core.io.jsonl import LEVELS, dump_row, get_captions, get_error, read_rows_with_lines
from lumina_cli.core.shards.tar import read_index

OTHER_NAMES = ("caption", "text")  # keys under which other tools store their only caption
HELD = 4096  # rows in memory before they are written to disk
NAMED = 3  # unmatched rows that the message names
EXACT = 1 << 53  # float64 represents all integers up to here


def read_input_rows(word: str) -> Iterator[dict]:
    """Yield the rows of a file, or of stdin for "-".

    Raises:
        LuminaError: if a row is malformed; the message names the line.
    """
    stdin = getattr(sys.stdin, "buffer", sys.stdin)
    return (validate_row(row, where) for where, row in read_rows_with_lines(stdin if word == "-" else word))


def validate_row(row: dict, where: str) -> dict:
    """Return a row in the form in which it is applied to a sample.

    One caption under "caption" or "text" becomes "captions", a "score" written as text a number. An integer
    that a float64 column cannot represent exactly is rounded to the nearest float.

    Raises:
        LuminaError: if readers of the shards would refuse the row; the message names its key.
    """
    where = f"{where} (key {row['key']})" if "key" in row else where
    if "captions" not in row and any(isinstance(row.get(name), str) for name in OTHER_NAMES):
        row = {name: value for name, value in with_captions(row).items() if name not in OTHER_NAMES}
    get_captions(row, where)
    if isinstance(row.get("score"), str):  # CSV files have only text
        row = row | {"score": _parse_number(row["score"])}
    for name, (shape, fits) in SHAPES.items():
        if row.get(name) is not None and not fits(row[name]):
            raise LuminaError(f"{name!r} of {where} is not {shape}")
    if "score" in row:
        row = row | {"score": _float(row["score"])}
    if row.get("scores") is not None:
        row = row | {"scores": {name: _float(value) for name, value in row["scores"].items()}}
    return row


def _parse_number(text: str) -> float | str | None:
    """Return the number in a cell of a table, None for an empty one, other text as it is."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value is None
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _is_text(value: Any) -> bool:
    try:
        return value is None or bool(isinstance(value, str) and [value.encode()])
    except UnicodeEncodeError:  # half of a surrogate pair, which parquet cannot store
        return False


def _float(value: int | float | None) -> int | float | None:
    return float(value) if isinstance(value, int) and abs(value) > EXACT else value


def _holds(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(fits, value.values()))


SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "captions": ("{language: {level: text}}", lambda value: isinstance(value, dict)),
    "scores": ("{name: number}", lambda value: _holds(value, _is_number)),
    "hashes": ("{name: text}", lambda value: _holds(value, _is_text)),
    "score": ("a number", _is_number),
}


class RowMatcher:
    """Sets rows aside in one file per shard, and counts the matches.

    count, matched, failed    all rows; rows that match a sample; rows with an error, which are skipped
    digest                    of the matched rows
    levels                    unknown caption levels and their number
    """

    def __init__(self, shards: str, tars: list[str], aside: Path):
        self.folder, self.aside, self.tars = _real_path(shards), aside, tars
        self.digest, self.count, self.matched, self.failed = hashlib.sha256(), 0, 0, 0
        self.first_error = ""
        self.members: dict[str, dict[str, str]] = {}  # shard: member -> key
        # key -> (shard, file) and file -> (shard, key); None if ambiguous
        self.keys: dict[str, tuple[str, str] | None] | None = None
        self.origins: dict[str, tuple[str, str] | None] = {}
        # number of components -> {last components of a file name: (shard, key, file), None if ambiguous}
        self.files: dict[int, dict[str, tuple[str, str, str] | None]] = {}
        self.deepest = 0  # components of the longest file name
        self.held: dict[str, list[str]] = {}
        self.missed: list[str] = []  # the first unmatched rows
        self.levels: Counter[str] = Counter()

    def add(self, row: dict) -> None:
        """Set a row aside if it matches a sample and does not have an error."""
        self.count += 1
        if error := get_error(row):
            self.failed += 1
            self.first_error = self.first_error or f"{_name_of(row)}: {error}"
            return
        line = dump_row({name: value for name, value in row.items() if name != "image"})
        shard, key = self._sample(row)
        if shard is None:
            if len(self.missed) < NAMED:
                self.missed.append(_name_of(row))
            return
        kinds = (level for texts in get_captions(row).values() for level in texts)
        self.levels.update(level for level in kinds if level not in LEVELS)
        self.matched += 1
        self.digest.update(f"{shard} {key} {line}\n".encode(errors="surrogatepass"))
        self.held.setdefault(shard, []).append(json.dumps([key, line]))
        if self.matched % HELD == 0:
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory to disk."""
        for shard, lines in self.held.items():
            with (self.aside / f"{shard}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        self.held = {}

    def read_rows(self, tar: str) -> dict[str, dict]:
        """Return the rows of a shard by key; the last one if several match a sample."""
        path = self.aside / f"{filesystem.basename(tar)}.jsonl"
        if not path.exists():
            return {}
        with path.open(encoding="utf-8") as file:
            return {key: json.loads(line) for key, line in map(json.loads, file)}

    def _sample(self, row: dict) -> tuple[str | None, str | None]:
        """Return (shard, key) of the sample that a row matches, or (None, None)."""
        image, key = row.get("image"), row.get("key")
        tar, sign, member = image.rpartition("#") if isinstance(image, str) else ("", "", "")
        if sign and tar.endswith(".tar") and self._is_here(tar):  # a tar of another folder may be an origin
            found = self._members(filesystem.basename(tar)).get(member)
            return (filesystem.basename(tar), found) if found else (None, None)
        if self.keys is None:
            self._read_names()
        for place in (image, row.get("origin")):  # shards made from shards keep the first origin
            if isinstance(place, str) and place and (origin := _real_path(place)) in self.origins:
                return self.origins[origin] or (None, None)
        in_tar = sign and tar.endswith(".tar")  # of other shards, in which the same key may be another image
        if in_tar or not isinstance(key, str):
            return None, None
        origin = _real_path(image) if isinstance(image, str) and image else ""
        if key in self.keys:
            shard, file = self.keys[key] or (None, "")
        else:
            shard, key, file = self._by_file(key)
        # the key alone is not enough: a.jpg and a.png of one folder have the same stem
        other = origin and file and filesystem.basename(origin) != filesystem.basename(file)
        return (shard, key) if shard and not other else (None, None)

    def _by_file(self, name: str) -> tuple[str | None, str | None, str]:
        """Return (shard, key, file) of the only sample whose file has this name, with or without suffix."""
        name = unicodedata.normalize("NFC", name)
        parts = name.count("/") + 1
        if parts > self.deepest:
            return None, None, ""
        if parts not in self.files:
            self.files[parts] = self._files_by(parts)
        return self.files[parts].get(name) or (None, None, "")

    def _files_by(self, parts: int) -> dict[str, tuple[str, str, str] | None]:
        """Return the samples by the last `parts` components of their file names, with and without suffix."""
        found: dict[str, tuple[str, str, str] | None] = {}
        for tar in self.tars:
            for entry in read_index(tar):
                if file := entry.get("origin"):
                    path = _path(file)
                    for name in {_tail(path, parts), _tail(os.path.splitext(path)[0], parts)} - {None}:
                        found[name] = (
                            None if name in found else (filesystem.basename(tar), entry["key"], path)
                        )
        return found

    def match_hint(self) -> str:
        """Return the end of a message: the first rows without a sample, and how rows are matched."""
        return (
            f": {', '.join(self.missed)}; 'image' or 'key' must be one that `lumina shard cat` prints, or "
            "'key' the name of the only file that the sample is from"
        )

    def _is_here(self, tar: str) -> bool:
        return _real_path(filesystem.parent(tar)) == self.folder

    def _members(self, shard: str) -> dict[str, str]:
        if shard not in self.members:
            if len(self.members) > 64:  # rows are mostly in the order of shards
                self.members.clear()
            tar = next((tar for tar in self.tars if filesystem.basename(tar) == shard), None)
            self.members[shard] = {entry["image"]: entry["key"] for entry in read_index(tar)} if tar else {}
        return self.members[shard]

    def _read_names(self) -> None:
        self.keys = {}
        for tar in self.tars:
            shard = filesystem.basename(tar)
            for entry in read_index(tar):
                key, origin = entry["key"], _real_path(entry["origin"]) if entry.get("origin") else ""
                self.keys[key] = None if key in self.keys else (shard, origin)
                if origin:
                    self.deepest = max(self.deepest, _path(entry["origin"]).count("/") + 1)
                    self.origins[origin] = None if origin in self.origins else (shard, key)


def _name_of(row: dict) -> str:
    return str(row.get("key") or row.get("image") or "a row without a key")


def _path(file: str) -> str:
    """Return a file name as keys are compared with it; "DIR/a.tar#b" counts as "DIR/a/b"."""
    return unicodedata.normalize("NFC", file.replace(".tar#", ".tar/"))


def _tail(path: str, parts: int) -> str | None:
    """Return the last `parts` components of a path; None if it has fewer."""
    found = path.rsplit("/", parts)
    return "/".join(found[-parts:]) if len(found) >= parts else None


def _real_path(folder: str) -> str:
    folder = filesystem.to_text(folder)
    return folder if filesystem.is_url(folder) else os.path.realpath(folder)

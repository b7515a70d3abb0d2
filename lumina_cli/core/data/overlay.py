"""Rows that were made elsewhere, laid over the samples of shards: new captions, scores, anything of a row.

A row is for the sample that its "image" names: "SHARDS/000000.tar#key.png", or the file that the sample was
made of. Or else for the one with its "key", or whose file has the key for a name ("cats/tom", "tom.png" or
"tom"), where there is one only. What a row says otherwise than the sample does so far is kept, nothing else;
and that what was known of a caption which the row replaces (by whom, with which score) holds no more. Rows
are set aside by shard on disk first, so memory holds one shard's.
"""

import hashlib
import json
import os
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.data.folders import with_captions
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats import places
from lumina_cli.core.formats.overlays import (
    MEASURED,
    Joiner,
    Overlay,
    find_overlays,
    merge,
    newest_of,
    open_version,
    versions_of,
)
from lumina_cli.core.formats.overlaywriter import Part, Version, begin, row_part, write_values
from lumina_cli.core.formats.rows import captions_of, dump_row, placed_rows
from lumina_cli.core.formats.selection import base_of
from lumina_cli.core.formats.shardreader import open_shards, read_entry, read_index

LEVELS = ("detailed", "medium", "short", "tags")  # those that `lumina caption` writes
OF_CAPTIONS = ("captioned_by", "caption_scores")  # {language: {level: ...}}, known of one caption each
OTHER_NAMES = ("caption", "text")  # under which other tools have their one caption
NOT_OURS = ("image", "key", "depth", "masks")  # of a row: where a sample is, not what is known of it
HELD = 4096  # rows in memory before they are set aside
NAMED = 3  # rows without a sample that are named


def rows_of(word: str) -> Iterator[dict]:
    """Yield the rows of a file, or of stdin for "-"; LuminaError names the line of one that is malformed."""
    stdin = getattr(sys.stdin, "buffer", sys.stdin)
    return (checked(row, where) for where, row in placed_rows(stdin if word == "-" else word))


def checked(row: dict, where: str) -> dict:
    """Return a row as it is laid over a sample; LuminaError, with the key, where readers would refuse it.

    One caption under "caption" or "text" is put where captions are.
    """
    where = f"{where} (key {row['key']})" if "key" in row else where
    if "captions" not in row and any(isinstance(row.get(name), str) for name in OTHER_NAMES):
        row = {name: value for name, value in with_captions(row).items() if name not in OTHER_NAMES}
    captions_of(row, where)
    for name, (shape, fits) in SHAPES.items():
        if row.get(name) is not None and not fits(row[name]):
            raise LuminaError(f"{name!r} of {where} is not {shape}")
    return row


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _holds(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "captions": ("{language: {level: text}}", lambda value: isinstance(value, dict)),
    "scores": ("{name: number}", lambda value: _holds(value, _is_number)),
    "hashes": ("{name: text}", lambda value: _holds(value, lambda each: isinstance(each, str | None))),
    "score": ("a number", _is_number),
}


def lay_rows(
    shards: str,
    rows: Iterable[dict],
    name: str,
    add: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write rows as a version of the overlay `name`; yield a row per shard and one for all.

    With `add` the version holds, too, what the newest one says where the rows say nothing. The same rows make
    no second version. `tell` hears of rows without a sample, of levels of captions that are not LEVELS, and
    of samples that the newest version knew and this one does not.
    LuminaError, before anything is written, where a row is malformed or none names a sample of the shards.
    """
    shards = base_of(shards)
    tars = open_shards(shards)
    with tempfile.TemporaryDirectory() as aside:
        sorter = _Sorter(shards, tars, Path(aside))
        for number, row in enumerate(rows, start=1):
            sorter.take(checked(row, f"row {number}"))
        sorter.flush()
        if not sorter.matched:
            raise LuminaError(f"none of {sorter.count} rows names a sample of {shards}{sorter.unmatched()}")
        _tell(sorter, shards, tell)
        made_by = {"rows": sorter.digest.hexdigest()[:16]}
        before, newest = _base(shards, name, made_by) if add else None, newest_of(shards, name)
        made_by |= {"over": before.version} if before else {}
        if before and before.info["settings"].get("rows") == made_by["rows"]:
            made_by = before.info["settings"]  # the same rows again
        version, hidden = begin(shards, name, made_by), 0
        for tar in tars:
            entries, found = read_index(tar), sorter.rows(tar)
            if newest and not before and newest.version != version.version:
                hidden += len(newest.open(tar, entries, strict=False).keys() - found.keys())
            if not version.has(tar, entries):
                parts = _parts(version, tar, entries, found, before)
                yield {"shard": tar} | version.write(tar, entries, parts)
    write_values(version, tars)
    info = version.finish(tars)
    if hidden:
        told = f"{name}@{newest.version} told of {hidden} samples that these rows do not name"
        tell(f"{told}; that is hidden now, and with --add it stays")
    row = {"overlay": name, "version": version.version, "samples": info["samples"], "rows": sorter.count}
    yield row | {"matched": sorter.matched, "unmatched": sorter.count - sorter.matched}


def _base(shards: str, name: str, made_by: dict) -> Overlay | None:
    """Return the newest version that rows are added to: not one that holds these rows alone."""
    found = (open_version(shards, name, version) for version in reversed(versions_of(shards, name)))
    return next((one for one in found if one and one.info["settings"] != made_by), None)


def _tell(sorter: "_Sorter", shards: str, tell: Callable[[str], None]) -> None:
    if missed := sorter.count - sorter.matched:
        tell(f"{missed} of {sorter.count} rows name no sample of {shards}{sorter.unmatched()}")
    if sorter.levels:
        found = ", ".join(f"{level} ({count})" for level, count in sorter.levels.most_common())
        tell(f"levels of captions that nothing else knows: {found}; the known ones are {', '.join(LEVELS)}")


class _Sorter:
    """Sets rows aside in a file for each shard, and counts those that name a sample."""

    def __init__(self, shards: str, tars: list[str], aside: Path):
        self.folder, self.aside, self.tars = _real(shards), aside, tars
        self.digest, self.count, self.matched = hashlib.sha256(), 0, 0
        self.members: dict[str, dict[str, str]] = {}  # shard: member -> key
        # key -> (shard, file) and file -> (shard, key); None where there are several
        self.keys: dict[str, tuple[str, str] | None] | None = None
        self.origins: dict[str, tuple[str, str] | None] = {}
        self.files: dict[str, list[tuple[str, str, str]]] | None = None  # last part of a name -> samples
        self.held: dict[str, list[str]] = {}
        self.missed: list[str] = []  # the first rows without a sample
        self.levels: Counter[str] = Counter()  # of captions, those that are not known

    def take(self, row: dict) -> None:
        self.count += 1
        line = dump_row({name: value for name, value in row.items() if name != "image"})
        shard, key = self._sample(row)
        if shard is None:
            if len(self.missed) < NAMED:
                self.missed.append(str(row.get("key") or row.get("image") or "a row without a key"))
            return
        kinds = (level for texts in captions_of(row).values() for level in texts)
        self.levels.update(level for level in kinds if level not in LEVELS)
        self.matched += 1
        self.digest.update(f"{shard} {key} {line}\n".encode(errors="surrogatepass"))
        self.held.setdefault(shard, []).append(json.dumps([key, line]))
        if self.count % HELD == 0:
            self.flush()

    def flush(self) -> None:
        for shard, lines in self.held.items():
            with (self.aside / f"{shard}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        self.held = {}

    def rows(self, tar: str) -> dict[str, dict]:
        """Return the rows of a shard by key; of several for one sample, the last."""
        path = self.aside / f"{places.name_of(tar)}.jsonl"
        if not path.exists():
            return {}
        with path.open(encoding="utf-8") as file:
            return {key: json.loads(line) for key, line in map(json.loads, file)}

    def _sample(self, row: dict) -> tuple[str | None, str | None]:
        image, key = row.get("image"), row.get("key")
        tar, sign, member = image.rpartition("#") if isinstance(image, str) else ("", "", "")
        if sign and tar.endswith(".tar") and self._is_here(tar):  # the tar of another folder may be an origin
            found = self._members(places.name_of(tar)).get(member)
            return (places.name_of(tar), found) if found else (None, None)
        if self.keys is None:
            self._read_names()
        for place in (image, row.get("origin")):  # shards of shards keep where the picture was first
            if isinstance(place, str) and place and (origin := _real(place)) in self.origins:
                return self.origins[origin] or (None, None)
        in_tar = sign and tar.endswith(".tar")  # of other shards, where the same key is another picture's
        if in_tar or not isinstance(key, str):
            return None, None
        origin = _real(image) if isinstance(image, str) and image else ""
        if key in self.keys:
            shard, file = self.keys[key] or (None, "")
        else:
            shard, key, file = self._by_file(key)
        # a key alone may be that of another picture: a.jpg and a.png of one folder
        other = origin and file and places.name_of(origin) != places.name_of(file)
        return (shard, key) if shard and not other else (None, None)

    def _by_file(self, name: str) -> tuple[str | None, str | None, str]:
        """Return (shard, key, file) of the one sample whose file has this name, its ending or not."""
        if self.files is None:
            self.files = {}
            for tar in self.tars:
                for entry in read_index(tar):
                    if file := entry.get("origin"):
                        path = unicodedata.normalize("NFC", file.replace(".tar#", ".tar/"))
                        sample = (places.name_of(tar), entry["key"], path)
                        self.files.setdefault(_last(path), []).append(sample)
        name = unicodedata.normalize("NFC", name)
        found = [each for last in {_last(name), places.name_of(name)} for each in self.files.get(last, ())]
        same = [each for each in found if f"/{name}" in _tails(each[2], len(name) + 1)]
        return same[0] if len(same) == 1 else (None, None, "")

    def unmatched(self) -> str:
        """Return how to go on with the rows that have no sample, the first ones named."""
        return (
            f": {', '.join(self.missed)}; 'image' or 'key' must be one that `lumina shard cat` shows, or "
            "'key' the name of the one file that the sample is from"
        )

    def _is_here(self, tar: str) -> bool:
        return _real(places.folder_of(tar)) == self.folder

    def _members(self, shard: str) -> dict[str, str]:
        if shard not in self.members:
            if len(self.members) > 64:  # rows mostly come in the order of shards
                self.members.clear()
            tar = next((tar for tar in self.tars if places.name_of(tar) == shard), None)
            self.members[shard] = {entry["image"]: entry["key"] for entry in read_index(tar)} if tar else {}
        return self.members[shard]

    def _read_names(self) -> None:
        self.keys = {}
        for tar in self.tars:
            shard = places.name_of(tar)
            for entry in read_index(tar):
                key, origin = entry["key"], _real(entry["origin"]) if entry.get("origin") else ""
                self.keys[key] = None if key in self.keys else (shard, origin)
                if origin:
                    self.origins[origin] = None if origin in self.origins else (shard, key)


def _stem(path: str) -> str:
    """A path without the ending of its last part."""
    return os.path.splitext(path)[0]


def _tails(path: str, length: int) -> tuple[str, str]:
    """The last so many signs of a path, and of it without its ending."""
    return f"/{path}"[-length:], f"/{_stem(path)}"[-length:]


def _last(path: str) -> str:
    return places.name_of(_stem(path))


def _real(folder: str) -> str:
    folder = places.text_of(folder)
    return folder if places.is_url(folder) else os.path.realpath(folder)


def _parts(version: Version, tar: str, entries: list[dict], rows: dict, before: Any) -> Iterator[Part]:
    """Yield what the rows of a shard say otherwise than its samples do without this overlay."""
    others = [each for each in find_overlays(version.shards) if each.name != version.name]
    measured = [each for each in others if each.name == MEASURED]  # its values stay where they are
    joins = [Joiner(each).open(tar, entries) for each in (measured, others)]
    old = before.parts(tar, before.open(tar, entries)) if before else lambda key: {}
    for entry in entries:
        row = {name: value for name, value in rows.get(entry["key"], {}).items() if name not in NOT_OURS}
        part = old(entry["key"])
        if row:
            sample = read_entry(tar, entry)
            for known in [merge(join(entry, sample), part) for join in joins]:
                part = merge(merge(part, _outdated(known, row), True), difference(known, row), True)
        if part:
            yield row_part(entry, part)


def _outdated(row: dict, other: dict) -> dict:
    """Return a part without what `row` knows of captions that `other` replaces, and says nothing of."""
    found: dict[str, dict] = {}
    known = with_captions(row).get("captions")
    for lang, texts in captions_of(other).items():
        for level, text in texts.items():
            if text == _of_caption({"captions": known}, "captions", lang, level):
                continue
            for name in OF_CAPTIONS:
                said = _of_caption(other, name, lang, level) is not None
                if not said and _of_caption(row, name, lang, level) is not None:
                    found.setdefault(name, {}).setdefault(lang, {})[level] = None
    return found


def _of_caption(row: dict, name: str, lang: str, level: str) -> Any:
    for part in (name, lang, level):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def difference(row: dict, other: dict) -> dict:
    """Return what `other` says that `row` does not say so: merged with `row` it gives both."""
    found = {}
    for name, value in other.items():
        known = row.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := difference(known, value):
                found[name] = inner
        elif value is not None and value != known:
            found[name] = value
    return found

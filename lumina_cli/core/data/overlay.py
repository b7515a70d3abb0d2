"""Rows that were made elsewhere, laid over the samples of shards: new captions, scores, anything of a row.

A row is for the sample that its "image" names ("SHARDS/000000.tar#key.png"), or else for the one with its
"key". What a row says otherwise than the sample does so far is kept, nothing else. Rows are set aside by
shard on disk first, so memory holds one shard's.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats import places
from lumina_cli.core.formats.overlays import Joiner, merge, newest_of, overlay_names
from lumina_cli.core.formats.overlaywriter import Part, Version, begin, row_part, write_values
from lumina_cli.core.formats.rows import dump_row, read_rows
from lumina_cli.core.formats.selection import base_of
from lumina_cli.core.formats.shardreader import open_shards, read_entry, read_index

NOT_OURS = ("image", "key", "depth", "masks")  # of a row: where a sample is, not what is known of it
HELD = 4096  # rows in memory before they are set aside


def rows_of(word: str) -> Iterator[dict]:
    """Yield the rows of a file, or of stdin for "-"."""
    return read_rows(getattr(sys.stdin, "buffer", sys.stdin) if word == "-" else word)


def lay_rows(shards: str, rows: Iterable[dict], name: str, add: bool = False) -> Iterator[dict]:
    """Write rows as a version of the overlay `name`; yield a row per shard and one for all.

    With `add` the version holds, too, what the newest one says where the rows say nothing. The same rows make
    no second version. LuminaError, before anything is written, where no row names a sample of the shards.
    """
    shards = base_of(shards)
    tars = open_shards(shards)
    with tempfile.TemporaryDirectory() as aside:
        sorter = _Sorter(shards, tars, Path(aside))
        for row in rows:
            sorter.take(row)
        sorter.flush()
        if not sorter.matched:
            raise LuminaError(
                f"none of {sorter.count} rows names a sample of {shards}; their 'image' or 'key' must be one "
                f"that `lumina shard cat {shards}` shows"
            )
        before = newest_of(shards, name) if add else None
        made_by = {"rows": sorter.digest.hexdigest()[:16]} | ({"over": before.version} if before else {})
        if before and before.info["settings"].get("rows") == made_by["rows"]:
            made_by = before.info["settings"]  # the same rows again
        version = begin(shards, name, made_by)
        for tar in tars:
            entries = read_index(tar)
            if not version.has(tar, entries):
                parts = _parts(version, tar, entries, sorter.rows(tar), before)
                yield {"shard": tar} | version.write(tar, entries, parts)
    write_values(version, tars)
    info = version.finish(tars)
    row = {"overlay": name, "version": version.version, "samples": info["samples"], "rows": sorter.count}
    yield row | {"matched": sorter.matched, "unmatched": sorter.count - sorter.matched}


class _Sorter:
    """Sets rows aside in a file for each shard, and counts those that name a sample."""

    def __init__(self, shards: str, tars: list[str], aside: Path):
        self.folder, self.aside, self.tars = _real(shards), aside, tars
        self.digest, self.count, self.matched = hashlib.sha256(), 0, 0
        self.members: dict[str, dict[str, str]] = {}  # shard: member -> key
        # key -> (shard, file) and file -> (shard, key); None where there are several
        self.keys: dict[str, tuple[str, str] | None] | None = None
        self.origins: dict[str, tuple[str, str] | None] = {}
        self.held: dict[str, list[str]] = {}

    def take(self, row: dict) -> None:
        self.count += 1
        line = dump_row({name: value for name, value in row.items() if name != "image"})
        shard, key = self._sample(row)
        if shard is None:
            return
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
        if sign and tar.endswith(".tar"):
            found = self._members(places.name_of(tar)).get(member) if self._is_here(tar) else None
            return (places.name_of(tar), found) if found else (None, None)
        if self.keys is None:
            self._read_names()
        origin = _real(image) if isinstance(image, str) and image else ""
        if origin in self.origins:
            return self.origins[origin] or (None, None)
        shard, file = self.keys.get(key) or (None, "") if isinstance(key, str) else (None, "")
        # a key alone may be that of another picture: a.jpg and a.png of one folder
        other = origin and file and places.name_of(origin) != places.name_of(file)
        return (shard, key) if shard and not other else (None, None)

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


def _real(folder: str) -> str:
    folder = places.text_of(folder)
    return folder if places.is_url(folder) else os.path.realpath(folder)


def _parts(version: Version, tar: str, entries: list[dict], rows: dict, before: Any) -> Iterator[Part]:
    """Yield what the rows of a shard say otherwise than its samples do without this overlay."""
    others = [each for each in overlay_names(version.shards) if each != version.name]
    found = (newest_of(version.shards, each) for each in others)
    join = Joiner([overlay for overlay in found if overlay and overlay.has_rows]).open(tar, entries)
    old = before.parts(tar, before.open(tar, entries)) if before else lambda key: {}
    for entry in entries:
        row = {name: value for name, value in rows.get(entry["key"], {}).items() if name not in NOT_OURS}
        part = difference(join(entry, read_entry(tar, entry)), row) if row else {}
        if part := merge(old(entry["key"]), part):
            yield row_part(entry, part)


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

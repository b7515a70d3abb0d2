"""Writing overlays: a version is known by its settings, and each tar of it is whole or not there.

Beginning a version with the settings of the newest one goes on with that one: a shard that is written, and
whose samples are still the same, stays. Other settings begin the next version. building.json holds the
settings until overlay.json, written last, makes the version whole.

The number of a version that was removed is never used again, or else NAME@VERSION would be other data than
before: overlays/NAME.removed holds the highest one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors, lock_folder
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.shards.manifest import write_table
from lumina_cli.core.shards.overlays import reader
from lumina_cli.core.shards.overlays.reader import DONE, base_digest, image_identity
from lumina_cli.core.shards.tar import BLOCK, add_member, read_span

BUILDING, VALUES = "building.json", "values.parquet"
REMOVED = ".removed"  # ends the name of the file with the highest number of a version that was removed
CHUNK = 1 << 20
COLUMNS = {"scores": "score_", "hashes": "hash_"}
INLINE = ("scores", "hashes", "score")  # of a part of a row: these stand in the index, too
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Part = tuple[dict, dict[str, bytes], dict]  # entry of the base's index, members by name, more for the index


@dataclass(frozen=True)
class Version:
    """A version that is being written; cheap to pickle."""

    shards: str
    name: str
    version: str
    settings: dict
    order: int = 0  # greater than that of all overlays that were begun before

    @property
    def folder(self) -> str:
        """Where it is."""
        return reader.version_folder(self.shards, self.name, self.version)

    def has(self, tar: str, entries: list[dict]) -> bool:
        """Whether the overlay of a tar is written, and for the samples that the tar holds now."""
        place = reader.overlay_index_path(self.folder, tar)
        if not filesystem.is_file(place):
            return False
        first = filesystem.read_file(place).partition(b"\n")[0]
        return json.loads(first or b"{}").get("base") == base_digest(entries)

    def lines(self, tar: str, entries: list[dict]) -> dict[str, dict]:
        """Return what is written of a tar so far, by key, of the samples whose picture is still the same."""
        lines = reader.read_shard_index(self.folder, tar) or [{}]
        pictures = {entry["key"]: image_identity(entry) for entry in entries}
        return {line["key"]: line for line in lines[1:] if pictures.get(line["key"]) == line["picture"]}

    def read(self, tar: str, line: dict, member: str) -> bytes:
        """Return a member of a sample; `line` is what `lines` gave."""
        where = filesystem.join(self.folder, filesystem.basename(tar))
        return read_span(where, *line["members"][member], f"{line['key']}.{member}")

    def write(self, tar: str, entries: list[dict], parts: Iterable[Part]) -> dict:
        """Write the overlay of one tar; return samples, bytes and the names of members."""
        lines = [{"base": base_digest(entries)}]
        place = filesystem.join(self.folder, filesystem.basename(tar))
        at = 0
        with filesystem.writing(place) as plain:
            file = _Hashed(plain)
            for entry, members, more in parts:
                spans = {}
                for name, data in members.items():
                    spans[name] = [at + BLOCK, len(data)]
                    with disk_errors(place):
                        at = add_member(file, at, f"{entry['key']}.{name}", data)
                line = {"key": entry["key"], "picture": image_identity(entry), "members": spans}
                lines.append(line | more)
            with disk_errors(place):
                file.write(bytes(2 * BLOCK))
        lines[0]["sha256"] = file.digest.hexdigest()
        text = "".join(dump_row(line) + "\n" for line in lines)
        filesystem.write_file(reader.overlay_index_path(self.folder, tar), text.encode())
        return {"samples": len(lines) - 1, "bytes": at + 2 * BLOCK}

    def finish(self, tars: Iterable[str]) -> dict:
        """Write overlay.json over what the shards hold; return what it says."""
        tars = list(tars)
        samples, names, fields, size, shards = 0, set(), set(), 0, 0
        for tar in tars:
            lines = reader.read_shard_index(self.folder, tar) or []
            samples, shards = samples + max(0, len(lines) - 1), shards + 1
            names |= {name for line in lines[1:] for name in line["members"]}
            fields |= {name for line in lines[1:] for name in line.get("fields", ())}
            size += filesystem.file_size(filesystem.join(self.folder, filesystem.basename(tar)))
        info = {"name": self.name, "version": self.version, "order": self.order, "settings": self.settings}
        info |= {"samples": samples, "shards": shards, "bytes": size}
        info |= {"members": sorted(names), "fields": sorted(fields)}
        values = filesystem.join(self.folder, VALUES)
        info["digests"] = {"indexes": indexes_digest(self.folder, tars)}
        if filesystem.is_file(values):
            info["digests"]["values"] = hash_of(values)
        filesystem.write_file(filesystem.join(self.folder, DONE), dump_row(info).encode())
        filesystem.remove(self.folder, [BUILDING])
        _let_go(self.shards, self.name)
        return info


class _Hashed:
    """A file that is written, and the hash of what was."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def hash_of(place: str) -> str:
    """Return the sha256 of a file, which is read in chunks."""
    digest = hashlib.sha256()
    with filesystem.open_file(place) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def indexes_digest(folder: str, tars: Iterable[str]) -> str:
    """Return the hash of all indexes of a version, one after another."""
    digest = hashlib.sha256()
    for tar in tars:
        digest.update(filesystem.read_file(reader.overlay_index_path(folder, tar)))
    return digest.hexdigest()


def write_values(version: Version, tars: Iterable[str]) -> list[str]:
    """Write values.parquet, the inline scores and hashes of a version as a table; return its columns.

    A row a sample: shard, key, picture, score, score_NAME..., hash_NAME... There is no such file, and [] is
    returned, where no sample has any.
    """
    names: set[tuple[str, str]] = set()
    some = False
    for tar in tars:
        for line in reader.read_shard_index(version.folder, tar) or []:
            names |= {(kind, name) for kind in COLUMNS for name in line.get(kind, {})}
            some = some or line.get("score") is not None
    if not names and not some:
        filesystem.remove(version.folder, [VALUES])
        return []
    import pyarrow as pa

    columns = {name: pa.string() for name in ("shard", "key", "picture")} | {"score": pa.float64()}
    columns |= {
        COLUMNS[kind] + name: pa.float64() if kind == "scores" else pa.string()
        for kind, name in sorted(names)
    }
    rows = (_values(tar, line) for tar in tars for line in reader.read_shard_index(version.folder, tar)[1:])
    write_table(filesystem.join(version.folder, VALUES), rows, pa.schema(list(columns.items())))
    return sorted(columns)


def _values(tar: str, line: dict) -> dict:
    row = {"shard": filesystem.basename(tar), "key": line["key"], "picture": line["picture"]}
    for kind, prefix in COLUMNS.items():
        row |= {prefix + name: value for name, value in line.get(kind, {}).items()}
    return row | {"score": line.get("score")}


def begin_version(shards: str, name: str, settings: dict) -> Version:
    """Return the version of an overlay that is made with these settings, the newest one or the next.

    No other process writes overlays of this name until it is finished, or this process ends. UsageError for a
    name that is no plain word, LuminaError where another process writes such overlays just now, or where
    their folder is a link to another one.
    """
    settings = json.loads(json.dumps(settings))
    shards = filesystem.to_text(shards)
    _hold(shards, name)
    found = reader.list_versions(shards, name)
    if found:
        folder = reader.version_folder(shards, name, found[-1])
        if links := _links(folder):
            raise LuminaError(f"{links[0]} is a link: nothing is written there; put a folder in its place")
        done = reader.read_json(filesystem.join(folder, DONE))
        known = done or reader.read_json(filesystem.join(folder, BUILDING)) or {}
        if known.get("settings") == settings:
            if done is None:
                filesystem.remove_partial(folder)
            return Version(shards, name, found[-1], settings, known.get("order", 0))
    number = 1 + max(_highest(found), _removed(shards, name))
    version = Version(shards, name, f"{number:04d}", settings, _next_order(shards))
    filesystem.make_dir(version.folder)
    building = json.dumps({"order": version.order, "settings": settings}, ensure_ascii=False)
    filesystem.write_file(filesystem.join(version.folder, BUILDING), building.encode())
    return version


def _highest(versions: Iterable[str]) -> int:
    return max((int(version) for version in versions if version.isdecimal()), default=0)


def _removed(shards: str, name: str) -> int:
    """Return the highest number of a version that was removed, 0 where none was."""
    place = _removed_place(shards, name)
    number = (reader.read_json(place) or {}).get("highest")
    return number if type(number) is int else 0


def _removed_place(shards: str, name: str) -> str:
    return "/".join([filesystem.to_text(shards), reader.FOLDER, name + REMOVED])


def _next_order(shards: str) -> int:
    """Return a number greater than that of each version of an overlay; those of before had none."""
    found = [
        reader.version_folder(shards, name, version)
        for name in reader.list_overlays(shards)
        for version in reader.list_versions(shards, name)
    ]
    infos = (reader.read_json(filesystem.join(each, file)) for each in found for file in (DONE, BUILDING))
    orders = ((info or {}).get("order") for info in infos)
    return 1 + max((order for order in orders if type(order) is int), default=0)


def remove_overlay(shards: str, word: str) -> Iterator[dict]:
    """Delete an overlay NAME, or one version of it, NAME@VERSION; yield a row for each version.

    UsageError where there is none of that name. LuminaError where another process writes it, or where its
    folder is a link or holds what is no file of an overlay.
    """
    shards = filesystem.to_text(shards)
    name, sign, version = word.partition("@")
    found = reader.list_versions(shards, name) if _NAME.fullmatch(name) else []
    chosen = [each for each in found if not sign or each == version]
    if not chosen or not all(map(_NAME.fullmatch, chosen)):
        have = reader.list_overlays(shards)
        have = [*have, *(f"{each}@{one}" for each in have for one in reader.list_versions(shards, each))]
        hint = f"; it has {', '.join(have)}" if have else "; it has no overlays"
        raise UsageError(f"{shards} has no overlay {word!r} to remove{hint}")
    _hold(shards, name)
    try:
        for each in chosen:
            folder = reader.version_folder(shards, name, each)
            files = _files_of_version(folder)
            highest = {"highest": max(_highest([each]), _removed(shards, name))}
            filesystem.write_file(_removed_place(shards, name), dump_row(highest).encode())
            filesystem.remove(
                folder, [DONE]
            )  # first: without it the version is not whole, and nobody reads it
            filesystem.remove(folder, files)
            filesystem.remove_dir(folder)
            yield {"overlay": name, "version": each, "removed": True}
    finally:
        _let_go(shards, name)
    if len(chosen) == len(found):
        filesystem.remove_dir(reader.version_folder(shards, name, "").rstrip("/"))


def _files_of_version(folder: str) -> list[str]:
    """Return the names of the files of a version; LuminaError where more is there than was written."""
    names = list(filesystem.list_sizes(folder))
    strange = _links(folder) + [each for each in filesystem.list_names(folder) if each not in names]
    if strange:
        raise LuminaError(f"{folder} stays: {strange[0]} is no file of an overlay; delete it by hand")
    return names


def _links(folder: str) -> list[str]:
    """Return which of the folder of a version, of its overlay and of all overlays are links."""
    parents = [folder, filesystem.parent(folder), filesystem.parent(filesystem.parent(folder))]
    return [] if filesystem.is_url(folder) else [each for each in parents if os.path.islink(each)]


@contextmanager
def lock_overlay(shards: str, name: str) -> Iterator[None]:
    """Keep other processes from writing overlays of this name; raises what `begin` raises."""
    _hold(filesystem.to_text(shards), name)
    try:
        yield
    finally:
        _let_go(filesystem.to_text(shards), name)


_held: dict[tuple[str, str], int] = {}  # (shards, name): the open folder of an overlay, locked (atomic.py)


def _hold(shards: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of an overlay: letters, digits, - and _ only")
    folder = reader.version_folder(shards, name, "")
    if (shards, name) in _held or filesystem.is_url(folder):
        return
    if links := _links(folder + "none"):
        raise LuminaError(f"{links[0]} is a link: nothing is written there; put a folder in its place")
    filesystem.make_dir(folder)
    number = lock_folder(folder.rstrip("/"))
    if number is not None:
        _held[shards, name] = number


def _let_go(shards: str, name: str) -> None:
    number = _held.pop((shards, name), None)
    if number is not None:
        os.close(number)


def row_part(entry: dict, part: dict) -> Part:
    """Return what `Version.write` takes for a part of a row."""
    known = {name: part[name] for name in INLINE if name in part} | {"fields": sorted(part)}
    return entry, {"json": dump_row(part).encode()}, known

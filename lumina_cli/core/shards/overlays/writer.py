"""Writing overlays: each tar of a version is written whole or not at all (format: shards/overlays/reader.py).

A version is identified by its settings. building.json holds them until overlay.json, written last, makes the
version complete.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.io.parallel.process_pool import map_in_threads
from lumina_cli.core.shards.manifest import write_row_table
from lumina_cli.core.shards.overlays import reader
from lumina_cli.core.shards.overlays.lock import release
from lumina_cli.core.shards.overlays.reader import DONE, base_digest, image_identity
from lumina_cli.core.shards.tar import BLOCK, add_member, read_span

BUILDING, VALUES = "building.json", "values.parquet"
CHUNK = 1 << 20
COLUMNS = {"scores": "score_", "hashes": "hash_"}
INLINE = ("scores", "hashes", "score")  # fields of a part that are copied to the index

Part = tuple[dict, dict[str, bytes], dict]  # line of the shard's index, members, further index fields


@dataclass(frozen=True)
class Version:
    """A version that is being written; cheap to pickle."""

    shards: str
    name: str
    version: str
    settings: dict
    order: int = 0  # greater than that of every version begun before

    @property
    def folder(self) -> str:
        """The folder of the version."""
        return reader.version_folder(self.shards, self.name, self.version)

    def has(self, tar: str, entries: list[dict]) -> bool:
        """Whether the overlay of a tar is written, for the samples that the tar holds now."""
        place = reader.overlay_index_path(self.folder, tar)
        if not filesystem.is_file(place):
            return False
        first = filesystem.read_file(place).partition(b"\n")[0]
        return json.loads(first or b"{}").get("base") == base_digest(entries)

    def lines(self, tar: str, entries: list[dict]) -> dict[str, dict]:
        """Return the lines that are written for a tar, by key, of samples whose image is still the same."""
        lines = reader.read_shard_index(self.folder, tar) or [{}]
        pictures = {entry["key"]: image_identity(entry) for entry in entries}
        return {line["key"]: line for line in lines[1:] if pictures.get(line["key"]) == line["picture"]}

    def read(self, tar: str, line: dict, member: str) -> bytes:
        """Return a member of a sample; `line` is the line that `lines` returned for its key."""
        where = filesystem.join(self.folder, filesystem.basename(tar))
        return read_span(where, *line["members"][member], f"{line['key']}.{member}")

    def write(self, tar: str, entries: list[dict], parts: Iterable[Part]) -> dict:
        """Write the overlay of one tar; return its samples and bytes."""
        lines = [{"base": base_digest(entries)}]
        place = filesystem.join(self.folder, filesystem.basename(tar))
        at = 0
        with filesystem.open_for_writing(place) as plain:
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
        """Write overlay.json from the indexes of `tars`, unlock the overlay, and return the content."""
        tars = list(tars)
        samples, names, fields, shards = 0, set(), set(), 0
        for lines in read_indexes(self.folder, tars):
            samples, shards = samples + max(0, len(lines) - 1), shards + 1
            names |= {name for line in lines[1:] for name in line["members"]}
            fields |= {name for line in lines[1:] for name in line.get("fields", ())}
        info = {"name": self.name, "version": self.version, "order": self.order, "settings": self.settings}
        written = filesystem.list_sizes(self.folder)
        size = sum(written[filesystem.basename(tar)] for tar in tars)
        info |= {"samples": samples, "shards": shards, "bytes": size}
        info |= {"members": sorted(names), "fields": sorted(fields)}
        values = filesystem.join(self.folder, VALUES)
        info["digests"] = {"indexes": indexes_digest(self.folder, tars)}
        if filesystem.is_file(values):
            info["digests"]["values"] = hash_file(values)
        filesystem.write_file(filesystem.join(self.folder, DONE), dump_row(info).encode())
        filesystem.remove(self.folder, [BUILDING])
        filesystem.remove_partial(self.folder)  # of workers that were killed
        release(self.shards, self.name)
        return info


class _Hashed:
    """A file with the hash of everything written to it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def hash_file(place: str) -> str:
    """Return the sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with filesystem.open_file(place) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def indexes_digest(folder: str, tars: Iterable[str]) -> str:
    """Return the sha256 of all indexes of a version, concatenated."""
    digest = hashlib.sha256()
    for data in map_in_threads(
        lambda tar: filesystem.read_file(reader.overlay_index_path(folder, tar)), tars
    ):
        digest.update(data)
    return digest.hexdigest()


def write_values(version: Version, tars: Sequence[str]) -> list[str]:
    """Write values.parquet, the scores and hashes of a version as a table; return its columns.

    One row per sample: shard, key, `picture`, score, score_NAME..., hash_NAME... Without any values the file
    is removed and [] is returned.
    """
    names: set[tuple[str, str]] = set()
    some = False
    for lines in read_indexes(version.folder, tars):
        for line in lines:
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
    indexes = zip(tars, read_indexes(version.folder, tars), strict=True)
    rows = (_values(tar, line) for tar, lines in indexes for line in lines[1:])
    write_row_table(filesystem.join(version.folder, VALUES), rows, pa.schema(list(columns.items())))
    return sorted(columns)


def read_indexes(folder: str, tars: Iterable[str]) -> Iterator[list[dict]]:
    """Yield the lines of the index of each tar in a version, several at a time; [] if there is none."""
    return map_in_threads(lambda tar: reader.read_shard_index(folder, tar) or [], tars)


def _values(tar: str, line: dict) -> dict:
    row = {"shard": filesystem.basename(tar), "key": line["key"], "picture": line["picture"]}
    for kind, prefix in COLUMNS.items():
        row |= {prefix + name: value for name, value in line.get(kind, {}).items()}
    return row | {"score": line.get("score")}


def make_row_part(entry: dict, part: dict) -> Part:
    """Return the argument of `Version.write` for a part of a row."""
    known = {name: part[name] for name in INLINE if name in part} | {"fields": sorted(part)}
    return entry, {"json": dump_row(part).encode()}, known

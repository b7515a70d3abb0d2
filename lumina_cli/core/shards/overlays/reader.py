"""Overlays: what was learnt of samples later, beside their shards and in versions; no shard is rewritten.

    SHARDS/overlays/NAME/0001/
      000000.tar           members of samples of the shard 000000.tar: {key}.json, a part of a row;
                           {key}.latents.npy and other arrays
      000000.index.jsonl   first a line about the shard: "base", a digest of its keys and pictures, and the
                           sha256 of the overlay's tar; then a line a sample: key, picture (its sha256),
                           members {name: [offset, length]}, what else is known
      overlay.json         written last: name, version, order (a number that grows), settings, totals,
                           digests of all indexes and of values.parquet, where scores have one
    SHARDS/overlays/NAME.removed   the highest number of a version that was removed; see overlaywriter.py

This module reads them; shards/overlays/writer.py writes them. A row of shards gets the newest version of each
overlay that holds parts of rows, the one that was begun last laid over the others.
"SHARDS?overlay=captions@0001,scores" names other ones, in the order in which they are laid over the row;
"SHARDS?overlay=" none.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import get_captions, parse_row
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.tar import read_span

FOLDER, DONE = "overlays", "overlay.json"
MEASURED = "scores"  # the overlay of `lumina shard score`
WORD = "?overlay="
AT_ONCE = 64 << 20  # bytes of a tar of parts of rows that is read as a whole

Add = Callable[[dict, dict], dict]  # (entry of an index, its row) -> the row with what overlays know


@dataclass(frozen=True)
class Overlay:
    """One whole version of an overlay; `info` is what its overlay.json says."""

    shards: str
    name: str
    version: str
    info: dict = field(compare=False)

    @property
    def folder(self) -> str:
        """Where it is."""
        return version_folder(self.shards, self.name, self.version)

    @property
    def order(self) -> tuple[int, str]:
        """What overlays are sorted by: those that were begun later are laid over the others."""
        number = self.info.get("order")
        return number if type(number) is int else 0, self.name

    @property
    def has_rows(self) -> bool:
        """Whether it holds parts of rows, not only arrays."""
        return "json" in self.info.get("members", [])

    def open(self, tar: str, entries: list[dict], strict: bool = True) -> dict[str, dict]:
        """Return the lines of its index by key, for the samples of a tar whose index is `entries`.

        LuminaError where the tar holds other samples than those that this was made for; without `strict`,
        samples whose picture is another one are left out instead.
        """
        lines = read_shard_index(self.folder, tar)
        if strict and (not lines or lines[0].get("base") != base_digest(entries)):
            raise LuminaError(
                f"overlay {self.name}@{self.version} is stale: {tar} holds other pictures than those it was "
                f"made for; make it again, or read {self.shards}{WORD} without overlays"
            )
        known = {line["key"]: line for line in (lines or [])[1:]}
        pairs = ((entry, known.get(entry["key"])) for entry in entries)
        return {
            entry["key"]: line for entry, line in pairs if line and line["picture"] == image_identity(entry)
        }

    def read(self, tar: str, line: dict, member: str = "json") -> bytes:
        """Return a member of a sample; `line` is what `open` gave for its key."""
        where = filesystem.join(self.folder, filesystem.basename(tar))
        return read_span(where, *line["members"][member], f"{line['key']}.{member}")

    def parts(self, tar: str, lines: dict[str, dict]) -> Callable[[str], dict]:
        """Return what gives, by key, the part of a row that a sample has here; {} where it has none."""
        where = filesystem.join(self.folder, filesystem.basename(tar))
        whole = None
        if self.info["members"] == ["json"] and lines and filesystem.file_size(where) <= AT_ONCE:
            whole = filesystem.read_file(where)

        def part(key: str) -> dict:
            line = lines.get(key)
            if line is None or "json" not in line["members"]:
                return {}
            offset, length = line["members"]["json"]
            data = (
                whole[offset : offset + length] if whole else read_span(where, offset, length, f"{key}.json")
            )
            return parse_row(data.decode(errors="replace"), f"{where}#{key}.json")

        return part


class OverlayJoiner:
    """Lays overlays over the rows of shards, tar by tar."""

    def __init__(self, overlays: list[Overlay]):
        self.overlays = overlays

    def open(self, tar: str, entries: list[dict], strict: bool = True) -> Add:
        """Return what adds to a row of `tar` what the overlays know.

        LuminaError where one is stale; without `strict` it then adds what holds still, as in `Overlay.open`.
        """
        parts = [(each, each.parts(tar, each.open(tar, entries, strict))) for each in self.overlays]

        def add(entry: dict, row: dict) -> dict:
            for overlay, part_of in parts:
                part = part_of(entry["key"])
                row = merge(row, part)
                if "captions" in part:
                    by = f"{overlay.name}@{overlay.version}"
                    get_captions(row, f"{tar}#{entry['key']} with the overlay {by}")
            return row

        return add


def open_joiner(source: str) -> tuple[str, OverlayJoiner]:
    """Return the bare place of a SOURCE of shards, and what joins the overlays that it names."""
    shards, wanted = split_source(source)
    return shards, OverlayJoiner(find_overlays(folder_of_shards(shards), wanted))


def split_source(source: str | os.PathLike) -> tuple[str, list[str] | None]:
    """Return (place, overlays that the word names); None where it names none and the newest are meant."""
    source = filesystem.to_text(source)
    place, word, names = source.rpartition(WORD)
    if not word:
        return source, None
    return place, [name for name in names.split(",") if name]


def find_overlays(shards: str, wanted: list[str] | None = None) -> list[Overlay]:
    """Return whole overlays of shards: the newest of each that holds parts of rows, or those of `wanted`.

    The first ones are sorted by when they were begun (`Overlay.order`). `wanted` are names, or
    NAME@VERSION. UsageError for one that is not there.
    """
    if wanted is None:
        newest = (newest_version(shards, name) for name in list_overlays(shards))
        return sorted((one for one in newest if one and one.has_rows), key=lambda one: one.order)
    found = []
    for word in wanted:
        name, _, version = word.partition("@")
        names = [each for each in list_overlays(shards) if newest_version(shards, each)]
        overlay = newest_version(shards, name) if name in names else None
        if overlay and version:
            overlay = open_version(shards, name, version) if version in list_versions(shards, name) else None
        if overlay is None:
            have = f"; it has {', '.join(names)}" if names else "; it has no overlays"
            raise UsageError(f"{shards} has no overlay {word!r}{did_you_mean(word, names) or have}")
        found.append(overlay)
    return found


def list_overlays(shards: str) -> list[str]:
    """Return the names of the overlays beside shards, finished or not."""
    return list_folders(filesystem.join(shards, FOLDER))


def list_versions(shards: str, name: str) -> list[str]:
    """Return the versions of an overlay, oldest first, finished or not."""
    return list_folders("/".join([filesystem.to_text(shards), FOLDER, name]))


def newest_version(shards: str, name: str) -> Overlay | None:
    """Return the newest whole version of an overlay, or None."""
    found = (open_version(shards, name, version) for version in reversed(list_versions(shards, name)))
    return next((overlay for overlay in found if overlay), None)


def open_version(shards: str, name: str, version: str) -> Overlay | None:
    """Return a version of an overlay, or None where it is not there or not whole."""
    info = read_json(filesystem.join(version_folder(shards, name, version), DONE))
    return Overlay(filesystem.to_text(shards), name, version, info) if info else None


def read_json(place: str) -> dict | None:
    """Return the object in a small file, or None where there is no such file."""
    if not filesystem.is_file(place):
        return None
    try:
        found = json.loads(filesystem.read_file(place))
    except ValueError as error:
        raise LuminaError(f"{place} is not JSON; delete the folder that it is in") from error
    return found if isinstance(found, dict) else None


def describe_overlays(shards: str) -> Iterator[dict]:
    """Yield a row per version of each overlay: overlay, version, whole, samples, bytes, members, settings."""
    for name in list_overlays(shards):
        for version in list_versions(shards, name):
            overlay = open_version(shards, name, version)
            row = {"overlay": name, "version": version, "whole": overlay is not None}
            seen = {*row, "name", "digests"}
            yield row | (
                {key: overlay.info[key] for key in overlay.info if key not in seen} if overlay else {}
            )


def merge(row: dict, part: dict, over_part: bool = False) -> dict:
    """Return `row` with `part` laid over it: dicts are merged key by key, anything else is replaced.

    A null in a part takes away what the row has there; laid over another part (`over_part`) it stays.
    """
    merged = dict(row)
    for name, value in part.items():
        if value is None and not over_part:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = merge(old if isinstance(old, dict) else {}, value, over_part)
        else:
            merged[name] = value
    return merged


def image_identity(entry: dict) -> str:
    """Return what tells the picture of a sample from others: its sha256, or else where it is in its tar."""
    return entry.get("sha256") or f"{entry['offset']}+{entry['length']}"


def base_digest(entries: Iterable[dict]) -> str:
    """Return 16 hex digits of the keys and pictures of a shard, in their order."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry['key']} {image_identity(entry)}\n".encode())
    return digest.hexdigest()[:16]


def version_folder(shards: str, name: str, version: str) -> str:
    """Return where a version of an overlay is."""
    return "/".join([filesystem.to_text(shards), FOLDER, name, version])


def folder_of_shards(source: str) -> str:
    """Return the folder of shards that a tar, or the folder itself, stands for."""
    source = filesystem.to_text(source)
    return filesystem.parent(source) if source.endswith(".tar") else source


def overlay_index_path(folder: str, tar: str) -> str:
    """Return where the index of the overlay of a tar is."""
    return filesystem.join(folder, f"{filesystem.basename(tar).removesuffix('.tar')}.index.jsonl")


def read_shard_index(folder: str, tar: str) -> list[dict] | None:
    """Return the lines of the index of the overlay of a tar, or None where it was not written yet."""
    place = overlay_index_path(folder, tar)
    if not filesystem.is_file(place):
        return None
    lines = filesystem.read_file(place).decode(errors="replace").split("\n")
    rows = [parse_row(line, f"{place} line {number}") for number, line in enumerate(lines, 1) if line]
    for number, row in enumerate(rows[1:], 2):
        texts = isinstance(row.get("key"), str) and isinstance(row.get("picture"), str)
        if (
            not texts
            or not isinstance(row.get("members"), dict)
            or not all(map(_is_span, row["members"].values()))
        ):
            raise LuminaError(
                f"{place} line {number} is no line of an overlay's index; write the overlay anew"
            )
    return rows


def _is_span(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(part) is int and part >= 0 for part in value)
    )


def list_folders(place: str) -> list[str]:
    """Return the names of the folders right in a place, sorted; [] where it is not there."""
    place = filesystem.to_text(place)
    if filesystem.is_url(place):
        return [name for name, _, folder in filesystem.remote_entries(place) if folder]
    if not os.path.isdir(place):
        return []
    with os.scandir(place) as found:
        return sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))

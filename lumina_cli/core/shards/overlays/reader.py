"""Reading overlays: fields of samples that were added after packing. This docstring defines their format.

An overlay adds or replaces fields of samples without rewriting a shard. It has numbered versions:

    SHARDS/overlays/NAME/0001/
      000000.tar           members for samples of the shard 000000.tar: {key}.json, a part of a row;
                           {key}.latents.npy and other arrays
      000000.index.jsonl   first line: "base", a digest of the keys and images of the shard, and "sha256" of
                           the overlay's tar; then one line per sample: key, `picture` (sha256 of its image),
                           members {name: [offset, length]}; scores, hashes, score and fields (names) of its
                           part
      values.parquet       scores and hashes as a table, if there are any
      overlay.json         name, version, order (increases with each version of any overlay), settings,
                           samples, shards, bytes, members, fields, digests of the indexes and of
                           values.parquet; written last, so a version without it is unfinished
    SHARDS/overlays/NAME.removed   the highest version number that was removed (shards/overlays/versions.py)

A row gets the newest version of each overlay that holds parts of rows; later versions (by "order") are
applied over earlier ones. "SHARDS?overlay=captions@0001,scores" selects others, in the order in which they
are applied; "SHARDS?overlay=" selects none. shards/overlays/writer.py writes overlays, and
shards/overlays/joiner.py applies them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.limits import parse_json
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.tar import read_span

FOLDER, DONE = "overlays", "overlay.json"
MEASURED = "scores"  # the overlay of `lumina shard score`
WORD = "?overlay="
AT_ONCE = 64 << 20  # a tar of parts of rows up to this size is read at once, in bytes


@dataclass(frozen=True)
class Overlay:
    """A complete version of an overlay; `info` is the content of its overlay.json."""

    shards: str
    name: str
    version: str
    info: dict = field(compare=False)

    @property
    def folder(self) -> str:
        """The folder of the version."""
        return version_folder(self.shards, self.name, self.version)

    @property
    def order(self) -> tuple[int, str]:
        """The sort key of overlays: those begun later are applied over the others."""
        number = self.info.get("order")
        return number if type(number) is int else 0, self.name

    @property
    def has_rows(self) -> bool:
        """Whether it holds parts of rows, not only arrays."""
        return "json" in self.info.get("members", [])

    def open(self, tar: str, entries: list[dict]) -> dict[str, dict]:
        """Return the lines of its index by key, for the samples of a tar whose index is `entries`.

        Samples that the overlay does not have, or has with another image, are left out.
        """
        known = {line["key"]: line for line in (read_shard_index(self.folder, tar) or [])[1:]}
        pairs = ((entry, known.get(entry["key"])) for entry in entries)
        return {
            entry["key"]: line for entry, line in pairs if line and line["picture"] == image_identity(entry)
        }

    def matches(self, tar: str, entries: list[dict]) -> bool:
        """Return whether it was written for exactly the images of a tar whose index is `entries`."""
        lines = read_shard_index(self.folder, tar)
        return bool(lines) and lines[0].get("base") == base_digest(entries)

    def mismatch(self, tar: str) -> LuminaError:
        """Return the error for a tar with other images than those that the overlay was written for."""
        return LuminaError(
            f"overlay {self.name}@{self.version} does not match: {tar} contains different images; "
            f"recreate it with {writing_command(self.name)}, or read {self.shards}{WORD} without overlays"
        )

    def read(self, tar: str, line: dict, member: str = "json") -> bytes:
        """Return a member of a sample; `line` is the line that `open` returned for its key."""
        where = filesystem.join(self.folder, filesystem.basename(tar))
        return read_span(where, *line["members"][member], f"{line['key']}.{member}")

    def parts(self, tar: str, lines: dict[str, dict]) -> Callable[[str], dict]:
        """Return a function from a key to the part of a row that the overlay has for it; {} if none.

        `lines` is the result of `open`. A tar that holds only parts of rows is read at once if it is small
        enough.
        """
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


def split_source(source: str | os.PathLike) -> tuple[str, list[str] | None]:
    """Return (location, names of overlays) of a SOURCE; None instead of names means the newest ones."""
    source = filesystem.to_text(source)
    place, word, names = source.rpartition(WORD)
    if not word or os.path.lexists(source):  # an existing name is never split
        return source, None
    return place, [name for name in names.split(",") if name]


def find_overlays(shards: str, wanted: list[str] | None = None) -> list[Overlay]:
    """Return the newest version of each overlay that holds parts of rows, or the `wanted` ones.

    The former are sorted by `Overlay.order`. `wanted` are names, or NAME@VERSION.

    Raises:
        UsageError: if a wanted overlay does not exist.
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
    """Return the names of the overlays of shards, complete or not."""
    return filesystem.list_folders(filesystem.join(shards, FOLDER))


def list_versions(shards: str, name: str) -> list[str]:
    """Return the versions of an overlay, oldest first, complete or not."""
    return filesystem.list_folders("/".join([filesystem.to_text(shards), FOLDER, name]))


def newest_version(shards: str, name: str) -> Overlay | None:
    """Return the newest complete version of an overlay, or None."""
    found = (open_version(shards, name, version) for version in reversed(list_versions(shards, name)))
    return next((overlay for overlay in found if overlay), None)


def open_version(shards: str, name: str, version: str) -> Overlay | None:
    """Return a version of an overlay; None if it does not exist or is incomplete."""
    info = read_json(filesystem.join(version_folder(shards, name, version), DONE))
    return Overlay(filesystem.to_text(shards), name, version, info) if info else None


def read_json(place: str) -> dict | None:
    """Return the object in a small JSON file, or None if the file does not exist.

    Raises:
        LuminaError: if it is not JSON.
    """
    if not filesystem.is_file(place):
        return None
    try:
        found = parse_json(filesystem.read_file(place))
    except ValueError as error:
        damaged = filesystem.parent(place) if place.endswith(".json") else place
        raise LuminaError(f"{place} is corrupt (not JSON); delete {damaged} and rerun") from error
    return found if isinstance(found, dict) else None


def writing_command(name: str) -> str:
    """Return the command that writes the overlay `name`, for messages."""
    verb = "score" if name == MEASURED else "encode" if name.startswith(("latents-", "text-")) else "overlay"
    return f"`lumina shard {verb}`"


def merge(row: dict, part: dict, over_part: bool = False) -> dict:
    """Return `row` with `part` applied: dicts are merged key by key, other values are replaced.

    A null in a part removes the value of the row; if a part is merged with another part (`over_part`), it is
    kept.
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
    """Return a text that identifies the image of a sample: its sha256, or else its span in the tar."""
    return entry.get("sha256") or f"{entry['offset']}+{entry['length']}"


def base_digest(entries: Iterable[dict]) -> str:
    """Return 16 hex digits of the keys and images of a shard, in order."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry['key']} {image_identity(entry)}\n".encode())
    return digest.hexdigest()[:16]


def version_folder(shards: str, name: str, version: str) -> str:
    """Return the folder of a version of an overlay."""
    return "/".join([filesystem.to_text(shards), FOLDER, name, version])


def folder_of_shards(source: str) -> str:
    """Return the folder of shards for a tar in it, or for the folder itself."""
    source = filesystem.to_text(source)
    return filesystem.parent(source) if source.endswith(".tar") else source


def overlay_index_path(folder: str, tar: str) -> str:
    """Return the path of the index that a version in `folder` has for a tar."""
    return filesystem.join(folder, f"{filesystem.basename(tar).removesuffix('.tar')}.index.jsonl")


def read_shard_index(folder: str, tar: str) -> list[dict] | None:
    """Return the lines of the index that a version in `folder` has for a tar, or None without one.

    Raises:
        LuminaError: if a line is malformed.
    """
    place = overlay_index_path(folder, tar)
    if not filesystem.is_file(place):
        return None
    lines = filesystem.read_file(place).decode(errors="replace").split("\n")
    rows = [parse_row(line, f"{place} line {number}") for number, line in enumerate(lines, 1) if line]
    for number, row in enumerate(rows[1:], 2):
        texts = isinstance(row.get("key"), str) and isinstance(row.get("picture"), str)
        members = row.get("members")
        if not texts or not isinstance(members, dict) or not all(map(_is_span, members.values())):
            name = filesystem.basename(filesystem.parent(folder))
            raise LuminaError(
                f"{place} line {number} is not a line of an overlay's index; recreate the overlay with "
                f"{writing_command(name)}"
            )
    return rows


def _is_span(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n >= 0 for n in value)

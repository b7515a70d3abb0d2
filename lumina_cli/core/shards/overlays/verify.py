"""Describe overlays, and verify their bytes and whether they still belong to the images in the shards."""

from collections.abc import Iterator

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.shards.overlays.reader import (
    DONE,
    Overlay,
    list_overlays,
    list_versions,
    newest_version,
    open_version,
    overlay_index_path,
    read_shard_index,
    writing_command,
)
from lumina_cli.core.shards.overlays.writer import VALUES, hash_file, indexes_digest
from lumina_cli.core.shards.tar import BLOCK, read_index, read_span, tar_header

_MODIFIED = "was modified after it was written"
_ARRAY = b"\x93NUMPY"  # magic bytes of a .npy file


def describe_overlays(shards: str) -> Iterator[dict]:
    """Yield a row per version: overlay, version, whole, samples, bytes, members, settings..."""
    for name in list_overlays(shards):
        for version in list_versions(shards, name):
            overlay = open_version(shards, name, version)
            row = {"overlay": name, "version": version, "whole": overlay is not None}
            seen = {*row, "name", "digests"}
            yield row | (
                {key: overlay.info[key] for key in overlay.info if key not in seen} if overlay else {}
            )


def verify_overlays(shards: str, tars: list[str]) -> Iterator[dict]:
    """Yield a row per complete version: overlay, samples, ok, and "problem", what is wrong or None.

    Tars, indexes and values are compared with their stored hashes; without hashes (versions of early
    releases) every member must be at its offset and readable. Only the newest version must belong to the
    images in `tars`, because older ones are read only on request.
    """
    for name in list_overlays(shards):
        newest = newest_version(shards, name)
        for overlay in (open_version(shards, name, version) for version in list_versions(shards, name)):
            if overlay is None:  # unfinished
                continue
            problem = None
            try:
                _verify(overlay, tars, overlay == newest)
            except LuminaError as error:
                problem = str(error)
            row = {"overlay": f"{name}@{overlay.version}", "samples": overlay.info.get("samples")}
            yield row | {"ok": problem is None, "problem": problem}


def _verify(overlay: Overlay, tars: list[str], newest: bool) -> None:
    for tar in tars:
        if newest and not overlay.matches(tar, read_index(tar)):
            raise overlay.mismatch(tar)
        lines = read_shard_index(overlay.folder, tar)
        if lines:
            _verify_tar(filesystem.join(overlay.folder, filesystem.basename(tar)), lines)
    digests = overlay.info.get("digests", {})
    written = [tar for tar in tars if filesystem.is_file(overlay_index_path(overlay.folder, tar))]
    if digests and len(written) == overlay.info["shards"]:
        place = filesystem.join(overlay.folder, DONE)
        what = f"the indexes listed in {place} were modified after they were written"
        _compare(place, what, digests["indexes"], indexes_digest(overlay.folder, written))
    if digests.get("values"):
        place = filesystem.join(overlay.folder, VALUES)
        _compare(place, f"{place} {_MODIFIED}", digests["values"], hash_file(place))


def _verify_tar(tar: str, lines: list[dict]) -> None:
    if lines[0].get("sha256"):
        _compare(tar, f"{tar} {_MODIFIED}", lines[0]["sha256"], hash_file(tar))
    size = filesystem.file_size(tar) if filesystem.is_file(tar) else 0
    for line in lines[1:]:
        for member, (offset, length) in line["members"].items():
            name = f"{line['key']}.{member}"
            if offset < BLOCK or offset + length > size:
                raise LuminaError(f"{tar}: truncated, {name} is incomplete; {_rewrite_hint(tar)}")
            if not lines[0].get("sha256"):
                _verify_member(tar, name, offset, length)


def _verify_member(tar: str, name: str, offset: int, length: int) -> None:
    data = read_span(tar, offset - BLOCK, BLOCK + length, name)
    if data[:BLOCK] != tar_header(name, length):
        raise LuminaError(f"{tar}: {name} is not at the offset in the index; {_rewrite_hint(tar)}")
    if name.endswith(".json"):
        parse_row(data[BLOCK:].decode(errors="replace"), f"{tar}#{name}")
    elif name.endswith(".npy") and data[BLOCK : BLOCK + len(_ARRAY)] != _ARRAY:
        raise LuminaError(f"{tar}#{name} is not an array; {_rewrite_hint(tar)}")


def _compare(place: str, what: str, wanted: str, found: str) -> None:
    if wanted != found:
        raise LuminaError(f"checksum mismatch: {what}; {_rewrite_hint(place)}")


def _rewrite_hint(place: str) -> str:
    folder = filesystem.parent(place)
    name = filesystem.basename(filesystem.parent(folder))
    return f"delete {folder} and recreate the overlay with {writing_command(name)}"

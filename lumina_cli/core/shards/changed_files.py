"""Whether the files that a shard was made of are still those whose pictures it holds.

A file of this machine is read only where it is newer than the shard, or of another size than what was copied
from it, or where the journal says that some file of the shard is not what it was; then its hash decides. What
none of these tells is not noticed: an older file of the same size that took the place of one of a finished
folder, a file that is gone, a picture behind a URL or in a tar.
"""

import hashlib
import os
from pathlib import Path

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.ingest import ingest
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.reader import TOTALS, read_image_bytes, read_index

_OF_ROWS = ("captions", "bad_caption", "bad_row", "no_image")  # rejects for what a row says, not its picture


def check_changed_files(
    dest: str,
    number: int,
    first: int,
    rows: list[dict],
    rejects: list[dict],
    encode: str | None,
    every: bool = False,
) -> None:
    """Raise UsageError that names a file which has changed since shard `number` of `dest` was written.

    `rows` are those that it was made of, the first of them row `first` of the input, and `rejects` those that
    were not taken. `encode` as in `write_shards`. With `every` each file is read, whatever its date.
    """
    local = [(at, row["image"]) for at, row in enumerate(rows, first) if _is_local(row.get("image"))]
    if not local:
        return
    tar = filesystem.join(dest, f"{number:06d}.tar")
    left_out = {reject["row"]: reject for reject in rejects}
    numbers = (at for at in range(first, first + len(rows)) if at not in left_out)
    entries = dict(zip(numbers, read_index(tar) if filesystem.is_file(tar) else [], strict=False))
    written = -1 if every else _date(tar) or _date(filesystem.join(dest, TOTALS))
    for at, path in local:
        if _has_changed(str(path), entries.get(at), left_out.get(at), written, encode):
            raise UsageError(
                f"{path} has changed since {dest} was written; --force writes all shards of it anew"
            )


def _is_local(image: object) -> bool:
    return isinstance(image, str | Path) and not filesystem.is_url(image)


def _date(place: str) -> int | None:
    try:
        return None if filesystem.is_url(place) else os.stat(place).st_mtime_ns
    except OSError:
        return None


def _has_changed(
    path: str, entry: dict | None, reject: dict | None, written: int | None, encode: str | None
) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    newer = written is not None and status.st_mtime_ns > written
    if entry and "sha256" in entry:
        copied = "encoded" not in entry.get("notes", ())
        return (newer or (copied and status.st_size != entry["length"])) and (
            _digest(path, encode) != entry["sha256"]
        )
    of_picture = reject is not None and not reject.get("upstream") and reject["code"] not in _OF_ROWS
    return newer and of_picture and _digest(path, encode, True) is not None  # it can be used by now


def _digest(path: str, encode: str | None, full: bool = False) -> str | None:
    """Return the hash of what a shard would hold of a file; None where it cannot be used, as far as it tells.

    What is copied is decoded with `full` only.
    """
    try:
        data = read_image_bytes(path)
        data = ingest(data, path, full, encode).data if full or encode else data
    except LuminaError:
        return None
    return hashlib.sha256(data).hexdigest()

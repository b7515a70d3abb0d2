"""A finished folder of shards meets rows again: the same ones, more that begin with them, or others.

Whole shards stay. The folder becomes one that was killed after them: their notes go back to the journal, then
shards.json goes. From there on any run over the same rows ends as a single one over all of them would have.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.ingest import ingest_image
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row, get_error_code, parse_row
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.image_ref import ImageFile, image_ref
from lumina_cli.core.shards.journal import Journal, digest_rows, encode_images
from lumina_cli.core.shards.reader import TOTALS, open_shards, read_index

REJECTS = "rejects.jsonl"
_OF_ROWS = ("captions", "bad_caption", "bad_row", "no_image")  # rejects whose cause is the row, not its image


@dataclass(frozen=True)
class KnownRows:
    """What of the rows a finished folder has: two digests (`digests`) of each shard that stays, and the rest.

    `rest` are the groups of rows that are to be written, from shard len(shards) on; None: there are none.
    """

    shards: list[list[str]]
    rest: Iterator[list[dict]] | None


def compare_inputs(groups: Iterator[list[dict]], totals: dict, journal: Journal) -> KnownRows:
    """Read as many rows as the folder was made from; UsageError where they are not these, in this order.

    UsageError, too, where a file of theirs has changed since. LuminaError where the folder is not whole.
    `groups` are the rows of one shard each, `totals` what shards.json says.
    """
    per_shard, left = totals["settings"]["per_shard"], count_rows(totals)
    said, shards, longer, changed = hashlib.sha256(), [], None, None
    open_shards(journal.dest)
    rejects, encode = _rejects(journal, totals), totals["settings"]["encode"]
    while left > 0:
        group = encode_images(next(groups, []))
        if len(group) < min(left, per_shard):
            raise journal.conflict("already holds shards of more rows")
        if len(group) > left:
            longer = group
        else:
            number = len(shards)
            job = number, number * per_shard, group, rejects.get(number, []), encode
            changed = changed or _change(journal.dest, *job)
            shards.append(digest_rows(group))
        said.update(digest_rows(group[:left])[0].encode())
        left -= per_shard
    if said.hexdigest() != totals["input"]:
        raise journal.conflict("already holds shards of other rows")
    if changed:
        raise changed
    longer = longer or next(groups, None)
    return KnownRows(shards, None if longer is None else chain([longer], groups))


def _change(dest: str, *shard: Any) -> UsageError | None:
    """Return the error of `check_files`: it is told where all rows are the same, and not before."""
    try:
        check_changed_files(dest, *shard)
    except UsageError as error:
        return error
    return None


def count_rows(totals: dict) -> int:
    """Return how many rows a folder was made from, without those that were left out before they came here."""
    return totals["rows"] - totals.get("upstream", [0])[0]


def reopen_folder(journal: Journal, totals: dict, shards: list[list[str]]) -> list[dict]:
    """Make a finished folder one that goes on behind its first shards; return their notes, with "kept"."""
    tars = {name: numbers for name, *numbers in totals["tars"]}
    rejects = _rejects(journal, totals)
    scores = manifest.read_score_names(journal.dest) if tars else []
    notes = []
    for number, (said, files) in enumerate(shards):
        samples, size, *index = tars.get(f"{number:06d}.tar", (0, 0, None))
        note = {"shard": number, "samples": samples, "bytes": size, "index": index if samples else None}
        note |= {"scores": scores if samples else [], "rows": said, "files": files}
        notes.append(note | {"rejects": rejects.get(number, [])})
        journal.write(notes[-1])
    journal.reopen(totals["settings"])
    return [note | {"kept": True} for note in notes]


def _rejects(journal: Journal, totals: dict) -> dict[int, list[dict]]:
    """Return the rejects of each shard, without those from before."""
    found: dict[int, list[dict]] = {}
    place = filesystem.join(journal.dest, REJECTS)
    lines = filesystem.read_file(place).decode().split("\n") if totals["rejects"] else []
    rows = [parse_row(line, place) for line in lines if line]
    if len(rows) != totals["rejects"]:
        raise LuminaError(f"{place} is not the one that was written; --force writes all anew")
    for row in rows:
        if row["row"] < count_rows(totals):
            found.setdefault(row["row"] // totals["settings"]["per_shard"], []).append(row)
    return found


def upstream_rejects(left_out: list[dict], first: int) -> list[dict]:
    """Return lines of rejects for rows that were left out before they came here; the first is row `first`."""
    rejects = []
    for number, row in enumerate(left_out, start=first):
        named = {"row": number, "key": row.get("key"), "image": row.get("image")}
        rejects.append(
            named | {"code": get_error_code(row), "reason": str(row.get("reason")), "upstream": True}
        )
    return rejects


def digest_rejects(left_out: list[dict]) -> list:
    """Return [how many, a digest] of rows that were left out before; [0] where there are none."""
    text = "".join(dump_row(row) + "\n" for row in upstream_rejects(left_out, 0))
    return [len(left_out), hashlib.sha256(text.encode()).hexdigest()[:16]] if left_out else [0]


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
    local = [(at, path) for at, row in enumerate(rows, first) if (path := _local_path(row.get("image")))]
    if not local:
        return
    tar = filesystem.join(dest, f"{number:06d}.tar")
    left_out = {reject["row"]: reject for reject in rejects}
    numbers = (at for at in range(first, first + len(rows)) if at not in left_out)
    entries = dict(zip(numbers, read_index(tar) if filesystem.is_file(tar) else [], strict=False))
    written = -1 if every else _date(tar) or _date(filesystem.join(dest, TOTALS))
    for at, path in local:
        if _has_changed(path, entries.get(at), left_out.get(at), written, encode):
            raise UsageError(
                f"{path} has changed since {dest} was written; --force writes all shards of it anew"
            )


def _local_path(image: object) -> str | None:
    ref = image_ref(image)
    return ref.local_path if isinstance(ref, ImageFile) else None


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
        data = ImageFile(path).read()
        data = ingest_image(data, path, full, encode).data if full or encode else data
    except LuminaError:
        return None
    return hashlib.sha256(data).hexdigest()

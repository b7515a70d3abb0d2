"""Appending to a finished folder of shards, and noticing image files that changed since.

A run over a finished folder compares its input with the rows that the folder was made from. If the input
starts with all of them and continues, the complete shards stay: `reopen_folder` restores their notes in the
journal and removes shards.json, which leaves a folder as a killed run would. From then on the usual resuming
applies, and the result is the same as that of a single run over all rows.
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
_ROW_CODES = (
    "captions",
    "bad_caption",
    "bad_row",
    "no_image",
    "scheme",
)  # the row is at fault


@dataclass(frozen=True)
class KnownRows:
    """The input, split into rows whose shards are kept and rows that are still to be packed.

    shards    the kept shards, in order: for each the two digests (`digest_rows`) of its input rows
    rest      the remaining input, a list of rows per shard, beginning with shard len(shards); None if all
              rows are packed
    """

    shards: list[list[str]]
    rest: Iterator[list[dict]] | None


def compare_inputs(groups: Iterator[list[dict]], totals: dict, journal: Journal) -> KnownRows:
    """Compare the leading input rows with those already packed.

    `groups` yields the input as one list of rows per shard; `totals` is the content of shards.json. If the
    last shard was not full, its rows are part of `rest`, because it is rewritten with more rows.

    Raises:
        UsageError: if the input does not start with these rows in this order, or an image file has changed.
        LuminaError: if the folder is incomplete.
    """
    per_shard, left = totals["settings"]["per_shard"], count_rows(totals)
    content, shards, longer, changed = hashlib.sha256(), [], None, None
    open_shards(journal.dest)
    rejects, encode = _rejects(journal, totals), totals["settings"]["encode"]
    while left > 0:
        group = encode_images(next(groups, []))
        if len(group) < min(left, per_shard):
            raise journal.conflict("holds shards of more rows than the input has")
        if len(group) > left:  # the last shard was not full: it is rewritten with more rows
            longer = group
        else:
            number = len(shards)
            job = number, number * per_shard, group, rejects.get(number, []), encode
            changed = changed or _change(journal.dest, *job)
            shards.append(digest_rows(group))
        content.update(digest_rows(group[:left])[0].encode())
        left -= per_shard
    if content.hexdigest() != totals["input"]:
        raise journal.conflict("holds shards of different rows")
    if changed:
        raise changed
    longer = longer or next(groups, None)
    return KnownRows(shards, None if longer is None else chain([longer], groups))


def _change(dest: str, *shard: Any) -> UsageError | None:
    """Return the error of `check_changed_files`; it is raised after all rows have been compared."""
    try:
        check_changed_files(dest, *shard)
    except UsageError as error:
        return error
    return None


def count_rows(totals: dict) -> int:
    """Return the number of input rows of a folder, without those that an earlier command rejected."""
    return totals["rows"] - totals.get("upstream", [0])[0]


def reopen_folder(journal: Journal, totals: dict, shards: list[list[str]]) -> list[dict]:
    """Make a finished folder resumable after its first shards; return their notes, with "kept"."""
    tars = {name: numbers for name, *numbers in totals["tars"]}
    rejects = _rejects(journal, totals)
    scores = manifest.read_score_names(journal.dest) if tars else []
    notes = []
    for number, (content, files) in enumerate(shards):
        samples, size, *index = tars.get(f"{number:06d}.tar", (0, 0, None))
        note = {"shard": number, "samples": samples, "bytes": size, "index": index if samples else None}
        note |= {"scores": scores if samples else [], "rows": content, "files": files}
        notes.append(note | {"rejects": rejects.get(number, [])})
        journal.write(notes[-1])
    journal.reopen(totals["settings"])
    return [note | {"kept": True} for note in notes]


def _rejects(journal: Journal, totals: dict) -> dict[int, list[dict]]:
    """Return {shard number: its rejects}, without those of earlier commands."""
    found: dict[int, list[dict]] = {}
    place = filesystem.join(journal.dest, REJECTS)
    lines = filesystem.read_file(place).decode().split("\n") if totals["rejects"] else []
    rows = [parse_row(line, place) for line in lines if line]
    if len(rows) != totals["rejects"]:
        raise LuminaError(
            f"{place} was modified after it was written: it has {len(rows)} lines, not {totals['rejects']}; "
            "use --force to rewrite all shards"
        )
    for row in rows:
        if row["row"] < count_rows(totals):
            found.setdefault(row["row"] // totals["settings"]["per_shard"], []).append(row)
    return found


def upstream_rejects(left_out: list[dict], first: int) -> list[dict]:
    """Return lines of rejects.jsonl for rows that an earlier command rejected, numbered from `first`."""
    rejects = []
    for number, row in enumerate(left_out, start=first):
        named = {"row": number, "key": row.get("key"), "image": row.get("image")}
        rejects.append(
            named | {"code": get_error_code(row), "reason": str(row.get("reason")), "upstream": True}
        )
    return rejects


def digest_rejects(left_out: list[dict]) -> list:
    """Return [number, digest] of the rows that an earlier command rejected; [0] if there are none."""
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
    """Check that the local files of a shard still hold the images that were packed.

    Reading and hashing every file would cost as much as packing, so a file is read only if it is newer than
    the shard, has another size than the bytes copied from it, or, with `every`, in any case. Not detected: an
    older file of the same size in the place of a packed one, a deleted file, and changes behind a URL or
    inside a tar.

        number, first     number of the shard in `dest`, and the input number of its first row
        rows, rejects     its input rows, and those of them that were rejected
        encode            as in `write_shards`

    Raises:
        UsageError: if a file has changed; the message names it.
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
                f"{path} has changed since {dest} was written; use --force to rewrite all shards"
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
    of_image = reject is not None and not reject.get("upstream") and reject["code"] not in _ROW_CODES
    return newer and of_image and _digest(path, encode, True) is not None  # usable by now


def _digest(path: str, encode: str | None, full: bool = False) -> str | None:
    """Return the hash of the bytes that a shard would hold of a file; None if it cannot be used."""
    try:
        data = ImageFile(path).read()
        data = ingest_image(data, path, full, encode).data if full or encode else data
    except LuminaError:
        return None
    return hashlib.sha256(data).hexdigest()

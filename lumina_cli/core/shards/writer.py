"""One shard: some rows of the input, read, checked, hashed and written, each by itself and always the same.

A shard depends on its rows and the settings alone, so any process may write any of them, in any order.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.ingest import IngestedImage, ingest
from lumina_cli.core.images.io import InvalidImage, png_bytes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.jsonl import dump_row, get_captions, get_error, get_error_code, in_memory
from lumina_cli.core.shards.changed_files import check_changed_files
from lumina_cli.core.shards.journal import Journal
from lumina_cli.core.shards.reader import index_path, read_image_bytes
from lumina_cli.core.shards.tar import BLOCK, TRUTH, RejectedImage, TarImage, add_member, sanitize_key

AT_ONCE = 32  # pictures fetched together from elsewhere
LARGE = 1 << 16  # bytes of a picture from which on another thread hashes it; hashlib lets go of the lock
_NAMED = (str, Path, TarImage, RejectedImage)

Count = Callable[[list[str]], list[int]]  # tokens of texts; picklable where there are workers


@dataclass(frozen=True)
class ShardSettings:
    """How samples are made: `full` decodes every picture, `encode` writes it anew, `count` counts tokens.

    `source` is what the manifest says of rows that do not say themselves where they are from.
    """

    full: bool = False
    encode: str | None = None
    count: Count | None = None
    source: str | None = None


@dataclass(frozen=True)
class ShardJob:
    """Shard `number` of `dest`, made of `rows`, the first of which is row `first` of the input."""

    dest: str
    number: int
    first: int
    rows: list[dict]
    making: ShardSettings
    done: bool = False  # the journal has it: only its rows are compared


def run_job(job: ShardJob) -> dict:
    """Write a shard that the journal does not have yet; return its note (see `write_shard`).

    UsageError where the journal has it with other rows, or a picture of theirs has changed.
    """
    journal = Journal(job.dest)
    job = replace(job, rows=with_files(job.rows))
    note = journal.read(job.number) if job.done else {}
    if not note:
        note = write_shard(job)
        journal.write(note)
        return note
    said, files = digests(job.rows)
    if note["rows"] != said:
        raise journal.taken(f"holds an unfinished run over other rows (shard {job.number})")
    if note["files"] != files:
        check_changed_files(
            job.dest, job.number, job.first, job.rows, note["rejects"], job.making.encode, every=True
        )
    return note | {"kept": True}


def write_shard(job: ShardJob) -> dict:
    """Write the index and the tar of one shard, each whole or not at all; return what the journal keeps.

    That is shard (number), rows and files (digests), samples, bytes, index (its sha256 and bytes), scores
    (names that occur), and rejects. A shard without samples has no files.
    """
    rejects: list[dict] = []
    samples = _samples(job, rejects)
    first = next(samples, None)
    note: dict[str, Any] = {"shard": job.number, "samples": 0, "bytes": 0, "index": None, "scores": []}
    if first is not None:
        note |= _write(
            filesystem.join(job.dest, f"{job.number:06d}.tar"), chain([first], samples), job.making
        )
    note["rows"], note["files"] = digests(job.rows)
    return note | {"rejects": rejects}


@dataclass(frozen=True)
class _Sample:
    key: str
    picture: IngestedImage
    truth: dict[str, bytes]
    row: dict
    line: bytes  # the row as it is written


def _samples(job: ShardJob, rejects: list[dict]) -> Iterator[_Sample]:
    """Yield rows ready to be written, each with its own key; those that cannot be used go to `rejects`."""
    keys: dict[str, int] = {}
    for number, (row, image) in enumerate(_fetched(job.rows), start=job.first):
        found = row.get("image")
        origin = str(found) if isinstance(found, _NAMED) else None
        try:
            if isinstance(image, LuminaError):
                raise image
            yield _sample(row, image, origin, keys, job.making)
        except LuminaError as error:
            named = {"row": number, "key": row.get("key"), "image": origin}
            why = {"code": getattr(error, "code", "unusable"), "reason": str(error)}
            rejects.append(named | why | ({"upstream": True} if get_error(row) else {}))


def _fetched(rows: list[dict]) -> Iterator[tuple[dict, Any]]:
    """Yield each row with its picture: the bytes of a file, or the error that reading it gave.

    What is elsewhere is fetched some at a time, because a store of objects is slow to answer, not to send.
    """
    if not any(map(_is_elsewhere, rows)):
        for row in rows:
            yield row, _fetch(row)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(rows), AT_ONCE):
            group = rows[start : start + AT_ONCE]
            yield from zip(group, pool.map(_fetch, group), strict=True)


def _is_elsewhere(row: dict) -> bool:
    image = row.get("image")
    place = image.tar if isinstance(image, TarImage) else image
    return isinstance(place, str) and filesystem.is_url(place)


def _fetch(row: dict) -> Any:
    image = row.get("image")
    if reason := get_error(row):
        return InvalidImage(reason, get_error_code(row))
    if isinstance(image, bytes):
        return image
    if not isinstance(image, _NAMED) or (isinstance(image, str) and not image.strip()):
        return InvalidImage("the row has no 'image'", "no_image")
    try:
        return read_image_bytes(image)
    except LuminaError as error:
        return error


def _sample(
    row: dict, image: Any, origin: str | None, keys: dict[str, int], making: ShardSettings
) -> _Sample:
    picture = ingest(image, origin or "the picture in memory", making.full, making.encode)
    truth = {name: _truth(row[name]) for name in TRUTH if _is_truth(row.get(name))}
    try:
        get_captions(row)
    except LuminaError as error:
        raise InvalidImage(str(error), "captions") from error
    kept = {name: value for name, value in row.items() if name != "image" and name not in truth}
    key = sanitize_key(str(row.get("key") or Path(origin or "picture").stem), keys)
    kept |= {"key": key, "width": picture.width, "height": picture.height}
    if origin is not None:
        kept.setdefault("origin", origin)
    try:
        return _Sample(key, picture, truth, kept, _line(kept))
    except RecursionError as error:
        raise InvalidImage("the row is nested too deeply", "bad_row") from error


def _line(row: dict) -> bytes:
    """Return `dump_row(row)` as bytes, sooner where a row holds nothing that JSON lacks."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return dump_row(row).encode()


def _is_truth(value: Any) -> bool:
    """Whether a row's "depth" or "masks" is a picture; other tools mean other things by these words."""
    return isinstance(value, bytes | TarImage) or (isinstance(value, str) and ".tar#" in value)


def _truth(value: bytes | str | TarImage) -> bytes:
    return value if isinstance(value, bytes) else read_image_bytes(value)


def _write(tar: str, samples: Iterator[_Sample], making: ShardSettings) -> dict:
    entries, scores, at = [], set(), 0
    with (
        filesystem.writing(tar, durable=False) as file,  # waiting for the disk would take as long as all else
        ThreadPoolExecutor(1) as hasher,
    ):
        for sample in samples:  # reading them may fail, too, and that is no fault of this tar
            with disk_errors(tar):
                entry, at = _add_sample(file, at, sample, hasher)
            entry |= about(sample.row, making)
            scores |= entry.get("scores", {}).keys()
            entries.append(entry)
        for entry in entries:
            if isinstance(entry["sha256"], Future):
                entry["sha256"] = entry["sha256"].result()
        lines = [_line(entry) for entry in entries]
        with disk_errors(tar):
            file.write(bytes(2 * BLOCK))
        index = b"".join(line + b"\n" for line in lines)
        filesystem.write_file(
            index_path(tar), index, durable=False
        )  # before the tar: one without index is another tool's
    digest = [hashlib.sha256(index).hexdigest(), len(index)]
    size = at + 2 * BLOCK
    return {"samples": len(lines), "bytes": size, "index": digest, "scores": sorted(scores)}


def _add_sample(file: IO[bytes], at: int, sample: _Sample, hasher: ThreadPoolExecutor) -> tuple[dict, int]:
    """Write a sample at `at`; return its line of the index and where the next one goes.

    The sha256 of a large picture is a Future: it is computed while the next ones are read and written.
    """
    picture, row = sample.picture, sample.line
    image = f"{sample.key}.{picture.suffix}"
    entry = {"key": sample.key, "image": image, "offset": at + BLOCK, "length": len(picture.data)}
    large = len(picture.data) > LARGE
    entry |= {"sha256": hasher.submit(_sha256, picture.data) if large else _sha256(picture.data)}
    entry |= {"width": picture.width, "height": picture.height}
    at = add_member(file, at, image, picture.data)
    entry |= {"row": [at + BLOCK, len(row)], "row_sha256": hashlib.sha256(row).hexdigest()}
    at = add_member(file, at, f"{sample.key}.json", row)
    for name, data in sample.truth.items():
        entry[name] = [at + BLOCK, len(data)]
        at = add_member(file, at, f"{sample.key}.{name}.png", data)
    return (entry | {"notes": list(picture.notes)} if picture.notes else entry), at


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def about(row: dict, making: ShardSettings = ShardSettings()) -> dict:
    """Return what the index says of a row beside where it is: characters, tokens, scores, source, origin...

    That is what `shards.py` tells of it, as far as the row has it.
    """
    captions = get_captions(row)
    found: dict[str, Any] = {}
    if captions:
        texts = [(lang, level, text) for lang, levels in captions.items() for level, text in levels.items()]
        found["characters"] = _by_kind(texts, [len(text) for *_, text in texts])
        if making.count is not None:
            found["tokens"] = _by_kind(texts, making.count([text for *_, text in texts]))
    if _is_number(row.get("score")):
        found["score"] = float(row["score"])
    scores = row.get("scores")
    named = (
        {str(name): float(value) for name, value in scores.items() if _is_number(value)}
        if isinstance(scores, dict)
        else {}
    )
    if named:
        found["scores"] = named
    source = row.get("source") if isinstance(row.get("source"), str) else making.source
    origin = row.get("origin") if isinstance(row.get("origin"), str) else None
    rejected = rejected_of(row)
    found |= ({"source": source} if source else {}) | ({"origin": origin} if origin else {})
    return found | ({"rejected_captions": rejected} if rejected else {})


def rejected_of(row: dict) -> dict[str, int]:
    """Return how many of a row's captions failed their checks, by the code of the reason."""
    rejected = row.get("rejected_captions")
    entries = [each for each in rejected if isinstance(each, dict)] if isinstance(rejected, list) else []
    codes = (each.get("code") or "unknown" for each in entries)
    return dict(sorted(Counter(code for code in codes if isinstance(code, str)).items()))


def _by_kind(texts: list[tuple], numbers: list[int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (lang, level, _), number in zip(texts, numbers, strict=True):
        found.setdefault(lang, {})[level] = number
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_files(rows: list[dict]) -> list[dict]:
    """Return rows whose pictures in memory have become PNG files, as they come from other processes, too."""
    return [
        row | {"image": png_bytes(row["image"].convert("RGB"))}
        if isinstance(row.get("image"), Image.Image)
        else row
        for row in rows
    ]


def digests(rows: list[dict]) -> list[str]:
    """Return two digests of rows: of what they say, and of sizes and dates of the files that they name."""
    said, seen = hashlib.sha256(), hashlib.sha256()
    for row in rows:
        said.update(_said(row))
        seen.update(_seen(row.get("image")))
    return [said.hexdigest(), seen.hexdigest()]


def _said(row: dict) -> bytes:
    memory = {name: value for name, value in row.items() if in_memory(value)}
    rest = {name: value for name, value in row.items() if name not in memory} if memory else row
    try:
        text = json.dumps(rest, default=str, skipkeys=True).encode()
    except (ValueError, RecursionError):
        text = repr((row.get("key"), str(row.get("image")), list(row))).encode()
    for name, value in memory.items():
        data = value.tobytes() if hasattr(value, "getpixel") else bytes(value)
        text += f"{name} {getattr(value, 'size', '')}".encode() + hashlib.sha256(data).digest()
    return text + b"\n"


def _seen(image: Any) -> bytes:
    if not isinstance(image, str | Path) or filesystem.is_url(image):
        return b"-"
    try:
        status = os.stat(image)
    except (OSError, ValueError):
        return b"gone"
    return b"%d %d\n" % (status.st_size, status.st_mtime_ns)

"""One shard: its rows are read, checked, hashed and written to a tar and an index.

The bytes of a shard depend only on its rows and the settings, so any process may write any shard.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.ingest import IngestedImage, ingest_image
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.jsonl import dump_row, get_captions, get_error, get_error_code
from lumina_cli.core.io.row_checks import LongLine
from lumina_cli.core.limits import MAX_DEPTH, MAX_ROW, check_json_value
from lumina_cli.core.secrets import mask_url
from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.journal import digest_rows
from lumina_cli.core.shards.reader import index_path
from lumina_cli.core.shards.tar import BLOCK, TRUTH, TarImage, add_member, sanitize_key

AT_ONCE = 32  # remote images that are fetched at the same time
LARGE = 1 << 16  # bytes of an image that another thread hashes; hashlib releases the GIL

Count = Callable[[list[str]], list[int]]  # texts -> numbers of tokens; picklable if there are workers


@dataclass(frozen=True)
class ShardSettings:
    """Settings of all shards.

    full     decode every image
    encode   re-encode images to this format
    count    returns the token counts of texts
    source   the source of rows that do not have a "source"
    """

    full: bool = False
    encode: str | None = None
    count: Count | None = None
    source: str | None = None


@dataclass(frozen=True)
class ShardJob:
    """Shard `number` of `dest`, made of `rows`; the first of them is row `first` of the input."""

    dest: str
    number: int
    first: int
    rows: list[dict]
    making: ShardSettings
    done: bool = False  # the journal has its note: only the rows are compared


def write_shard(job: ShardJob) -> dict:
    """Write the index and the tar of one shard, each whole or not at all; return its note for the journal.

    The note holds shard (number), samples, bytes, index [sha256, bytes], scores (names), rows and files
    (digests), and rejects. A shard without samples has no files.
    """
    rejects: list[dict] = []
    samples = _samples(job, rejects)
    first = next(samples, None)
    note: dict[str, Any] = {"shard": job.number, "samples": 0, "bytes": 0, "index": None, "scores": []}
    if first is not None:
        note |= _write(
            filesystem.join(job.dest, f"{job.number:06d}.tar"), chain([first], samples), job.making
        )
    note["rows"], note["files"] = digest_rows(job.rows)
    return note | {"rejects": rejects}


@dataclass(frozen=True)
class _Sample:
    key: str
    image: IngestedImage
    truth: dict[str, bytes]
    row: dict
    line: bytes  # the JSON of the row


def _samples(job: ShardJob, rejects: list[dict]) -> Iterator[_Sample]:
    """Yield the samples of the rows, with unique keys; rows that cannot be used are added to `rejects`."""
    keys: dict[str, int] = {}
    for number, (row, image) in enumerate(_fetched(job.rows), start=job.first):
        origin = image_ref(row.get("image")).origin
        try:
            if isinstance(image, LuminaError):
                raise image
            yield _sample(row, image, origin, keys, job.making)
        except LuminaError as error:
            named = {"row": number, "key": row.get("key"), "image": origin and mask_url(origin)}
            why = {"code": getattr(error, "code", "unusable"), "reason": str(error)}
            rejects.append(named | why | ({"upstream": True} if get_error(row) else {}))


def _fetched(rows: list[dict]) -> Iterator[tuple[dict, Any]]:
    """Yield each row with the bytes of its image, or the error of reading it.

    Remote images are fetched AT_ONCE at a time, because object stores have a high latency.
    """
    if not any(map(_is_remote, rows)):
        for row in rows:
            yield row, _fetch(row)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(rows), AT_ONCE):
            group = rows[start : start + AT_ONCE]
            yield from zip(group, pool.map(_fetch, group), strict=True)


def _is_remote(row: dict) -> bool:
    origin = image_ref(row.get("image")).origin
    return origin is not None and filesystem.is_url(origin)


def _fetch(row: dict) -> bytes | LuminaError:
    if reason := get_error(row):
        return InvalidImage(reason, get_error_code(row))
    try:
        return image_ref(row.get("image")).read()
    except LuminaError as error:
        return error


def _sample(
    row: dict, image: Any, origin: str | None, keys: dict[str, int], making: ShardSettings
) -> _Sample:
    ingested = ingest_image(image, origin or "the image in memory", making.full, making.encode)
    truth = {name: _truth(row[name]) for name in TRUTH if _is_truth(row.get(name))}
    try:
        get_captions(row)
    except LuminaError as error:
        raise InvalidImage(str(error), "captions") from error
    kept = {name: value for name, value in row.items() if name != "image" and name not in truth}
    key = sanitize_key(str(row.get("key") or Path(origin or "picture").stem), keys)
    kept |= {"key": key, "width": ingested.width, "height": ingested.height}
    if origin is not None:
        kept.setdefault("origin", mask_url(origin))
    return _Sample(key, ingested, truth, kept, _checked_line(kept))


def _checked_line(row: dict) -> bytes:
    """Return the JSON of a row.

    Raises:
        InvalidImage: if the row exceeds the limits of rows, so that readers would refuse it.
    """
    try:
        line = _line(row)
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH or len(line) > MAX_ROW:
            check_json_value(row)
    except (RecursionError, ValueError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InvalidImage(f"the row cannot be stored: {reason}", "bad_row") from error
    if len(line) > MAX_ROW:
        raise InvalidImage(f"the row is {LongLine.reason}", "bad_row")
    return line


def _line(row: dict) -> bytes:
    """Return `dump_row(row)` as bytes; faster for rows that JSON can represent."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return dump_row(row).encode()


def _is_truth(value: Any) -> bool:
    """Whether "depth" or "masks" of a row is an image; other tools use these keys for other things."""
    return isinstance(value, bytes | TarImage) or (isinstance(value, str) and ".tar#" in value)


def _truth(value: bytes | str | TarImage) -> bytes:
    return value if isinstance(value, bytes) else image_ref(value).read()


def _write(tar: str, samples: Iterator[_Sample], making: ShardSettings) -> dict:
    entries, scores, at = [], set(), 0
    with (
        filesystem.open_for_writing(
            tar, durable=False
        ) as file,  # waiting for the disk would take as long as all else
        ThreadPoolExecutor(1) as hasher,
    ):
        for sample in samples:  # outside of disk_errors: reading images may fail, too
            with disk_errors(tar):
                entry, at = _add_sample(file, at, sample, hasher)
            entry |= index_fields(sample.row, making)
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
        )  # before the tar: a tar without an index looks like one of another tool
    digest = [hashlib.sha256(index).hexdigest(), len(index)]
    size = at + 2 * BLOCK
    return {"samples": len(lines), "bytes": size, "index": digest, "scores": sorted(scores)}


def _add_sample(file: IO[bytes], at: int, sample: _Sample, hasher: ThreadPoolExecutor) -> tuple[dict, int]:
    """Write a sample at offset `at`; return its line of the index and the offset of the next sample.

    The sha256 of a large image is a Future: hashing runs while the next samples are read and written.
    """
    ingested, row = sample.image, sample.line
    image = f"{sample.key}.{ingested.suffix}"
    entry = {"key": sample.key, "image": image, "offset": at + BLOCK, "length": len(ingested.data)}
    large = len(ingested.data) > LARGE
    entry |= {"sha256": hasher.submit(_sha256, ingested.data) if large else _sha256(ingested.data)}
    entry |= {"width": ingested.width, "height": ingested.height}
    at = add_member(file, at, image, ingested.data)
    entry |= {"row": [at + BLOCK, len(row)], "row_sha256": hashlib.sha256(row).hexdigest()}
    at = add_member(file, at, f"{sample.key}.json", row)
    for name, data in sample.truth.items():
        entry[name] = [at + BLOCK, len(data)]
        at = add_member(file, at, f"{sample.key}.{name}.png", data)
    return (entry | {"notes": list(ingested.notes)} if ingested.notes else entry), at


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def index_fields(row: dict, making: ShardSettings = ShardSettings()) -> dict:
    """Return the fields of an index line that describe a row: characters, tokens, scores, source, origin...

    See shards/inspect.py; fields without a value are omitted.
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
    rejected = count_rejected_captions(row)
    found |= ({"source": source} if source else {}) | ({"origin": origin} if origin else {})
    return found | ({"rejected_captions": rejected} if rejected else {})


def count_rejected_captions(row: dict) -> dict[str, int]:
    """Return {code: number} of a row's captions that failed their checks."""
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
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False

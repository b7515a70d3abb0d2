"""One shard: its rows are read, checked, hashed and written to a tar and an index.

The bytes of a shard depend only on its rows and the settings, so any process may write any shard.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.journal import digest_rows
from lumina_cli.core.shards.sample import Sample, ShardSettings, dump_line, make_samples
from lumina_cli.core.shards.tar import BLOCK, add_member, index_path

LARGE = 1 << 16  # bytes of an image that another thread hashes; hashlib releases the GIL
DEFAULTS = ShardSettings()


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
    samples = make_samples(enumerate(job.rows, start=job.first), {}, job.making, rejects)
    first = next(samples, None)
    note: dict[str, Any] = {"shard": job.number, "samples": 0, "bytes": 0, "index": None, "scores": []}
    if first is not None:
        note |= write_tar(
            filesystem.join(job.dest, f"{job.number:06d}.tar"), chain([first], samples), job.making
        )
    note["rows"], note["files"] = digest_rows(job.rows)
    return note | {"rejects": rejects}


def write_tar(tar: str, samples: Iterator[Sample], making: ShardSettings, durable: bool = False) -> dict:
    """Write the tar and the index of samples; return their part of a note: samples, bytes, index, scores.

    `durable` is that of `atomic_write`; waiting for the disk would take as long as all else.
    """
    entries, scores, at = [], set(), 0
    with filesystem.open_for_writing(tar, durable=durable) as file, ThreadPoolExecutor(1) as hasher:
        for sample in samples:  # outside of disk_errors: reading images may fail, too
            with disk_errors(tar):
                entry, at = _add_sample(file, at, sample, hasher)
            if sample.known is None:
                entry |= index_fields(sample.row, making)
            scores |= entry.get("scores", {}).keys()
            entries.append(entry)
        for entry in entries:
            if isinstance(entry["sha256"], Future):
                entry["sha256"] = entry["sha256"].result()
        lines = [dump_line(entry) for entry in entries]
        with disk_errors(tar):
            file.write(bytes(2 * BLOCK))
        index = b"".join(line + b"\n" for line in lines)
        filesystem.write_file(
            index_path(tar), index, durable
        )  # before the tar: a tar without an index looks like one of another tool
    digest = [hashlib.sha256(index).hexdigest(), len(index)]
    size = at + 2 * BLOCK
    return {"samples": len(lines), "bytes": size, "index": digest, "scores": sorted(scores)}


def _add_sample(file: IO[bytes], at: int, sample: Sample, hasher: ThreadPoolExecutor) -> tuple[dict, int]:
    """Write a sample at offset `at`; return its line of the index and the offset of the next sample.

    The sha256 of a large image is a Future: hashing runs while the next samples are read and written.
    """
    ingested, row = sample.image, sample.line
    image = f"{sample.key}.{ingested.suffix}"
    spans: dict[str, Any] = {"offset": at + BLOCK, "length": len(ingested.data)}
    at = add_member(file, at, image, ingested.data)
    spans["row"] = [at + BLOCK, len(row)]
    at = add_member(file, at, f"{sample.key}.json", row)
    for name, data in sample.truth.items():
        spans[name] = [at + BLOCK, len(data)]
        at = add_member(file, at, f"{sample.key}.{name}.png", data)
    if sample.known is not None:
        return sample.known | spans, at
    large = len(ingested.data) > LARGE
    digest = hasher.submit(_sha256, ingested.data) if large else _sha256(ingested.data)
    entry = {"key": sample.key, "image": image, "offset": spans.pop("offset"), "length": spans.pop("length")}
    entry |= {"sha256": digest, "width": ingested.width, "height": ingested.height, "row": spans.pop("row")}
    entry |= {"row_sha256": hashlib.sha256(row).hexdigest()} | spans
    return (entry | {"notes": list(ingested.notes)} if ingested.notes else entry), at


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def index_fields(row: dict, making: ShardSettings = DEFAULTS) -> dict:
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

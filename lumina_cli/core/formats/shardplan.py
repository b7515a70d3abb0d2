"""From rows to a folder of shards: which rows each shard holds, who writes it, and going on after a kill.

Shard k holds the rows from k * per_shard on, so no shard depends on another; rows that cannot be used leave
theirs short. The journal (journal.py) notes each shard once it is whole.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from lumina_cli.core.errors import LuminaError, TooManyBad, UsageError
from lumina_cli.core.formats import manifest, places
from lumina_cli.core.formats.journal import VERSION, Journal, check_number
from lumina_cli.core.formats.policy import ENCODINGS
from lumina_cli.core.formats.rows import chunked, dump_row
from lumina_cli.core.formats.shardreader import TOTALS, dump_totals
from lumina_cli.core.formats.shardwriter import Count, Job, Making, digests, run_job, with_files
from lumina_cli.core.formats.workers import in_order

CHECKS = ("quick", "full")


def write_shards(
    rows: Iterable[dict],
    dest: str | Path,
    per_shard: int = 1000,
    max_bad_rate: float = 0.05,
    force: bool = False,
    *,
    workers: int = 0,
    check: str = "quick",
    encode: str | None = None,
    count: Count | None = None,
    source: str | None = None,
) -> Iterator[dict]:
    """Write rows with pictures as shards; yield a row per finished shard: shard, samples, bytes, rejects.

    `rows` need an "image": a path, a URL, a PIL picture, the bytes of a picture file or a TarImage. "depth"
    and "masks", bytes of a PNG or a TarImage, become members of their own. Rows that cannot be used go to
    rejects.jsonl; after the last shard TooManyBad is raised if more than `max_bad_rate` of all did.

    The folder is the same, byte for byte, for any number of `workers` (0 and 1: this process), and however
    often the run was killed before: a run over the same rows with the same settings goes on where the last
    one ended ("kept": True in a row of a shard that was there). UsageError where `dest` holds other shards;
    `force` removes them. `check`: "quick" looks at the parts of each file, "full" decodes it; `encode` writes
    all pictures as png, webp, jpg or avif; `count` gives the tokens of texts for the index.
    """
    dest = _checked(places.text_of(dest), per_shard, workers, check, encode)
    settings = {"version": VERSION, "per_shard": per_shard, "check": check, "encode": encode}
    settings |= {"tokenizer": getattr(count, "digest", None), "source": source}
    places.make_folder(dest)
    journal = Journal(dest)
    if force:
        journal.clear()
    finished = journal.begin(settings)
    groups = chunked(rows, per_shard)
    if finished is None:
        jobs = _jobs(groups, dest, Making(check == "full", encode, count, source), journal)
        notes = _watched(_run(jobs, workers), journal)
        finished = yield from _finish(notes, journal, settings, workers)
    else:
        yield from _compare(groups, finished, journal)
    bad, samples = finished["rejects"], finished["samples"]
    if bad > max_bad_rate * (bad + samples):
        where = places.join(dest, "rejects.jsonl")
        share = f"{bad} of {bad + samples} pictures cannot be used"
        raise TooManyBad(f"{share}, more than --max-bad-rate allows; {where} says why")


def _checked(dest: str, per_shard: int, workers: int, check: str, encode: str | None) -> str:
    if per_shard < 1:
        raise UsageError(f"a shard holds at least 1 sample, not {per_shard}")
    if workers > 1 and places.in_this_process(dest):
        raise UsageError(f"{dest} is in the memory of this process; other workers cannot write there")
    for name, word, words in (("check", check, CHECKS), ("encode", encode, (None, *ENCODINGS))):
        if word not in words:
            raise UsageError(f"unknown --{name} {word!r}; choose from {', '.join(filter(None, words))}")
    return dest


def _jobs(groups: Iterator[list[dict]], dest: str, making: Making, journal: Journal) -> Iterator[Job]:
    done, first, number = set(journal.numbers()), 0, -1
    for number, group in enumerate(groups):
        check_number(number)
        yield Job(dest, number, first, group, making, number in done)
        first += len(group)
    if any(beyond > number for beyond in done):
        raise journal.taken("holds an unfinished run over more rows")


def _run(jobs: Iterator[Job], workers: int) -> Iterator[dict]:
    """Yield the notes of jobs in order; a single shard is not worth another process."""
    if workers < 2:
        return map(run_job, jobs)
    ahead = list(islice(jobs, 2))
    jobs = chain(ahead, jobs)
    return map(run_job, jobs) if len(ahead) < 2 else in_order(run_job, jobs, workers)


def _watched(notes: Iterator[dict], journal: Journal) -> Iterator[dict]:
    count = 0
    for note in notes:
        count += 1
        yield note
    if not count:
        journal.remove()
        raise LuminaError("nothing to shard: the source has no rows")


def _finish(notes: Iterator[dict], journal: Journal, settings: dict, workers: int) -> Iterator[dict]:
    """Yield a row per shard; then write what is about all of them, shards.json last; return what it says."""
    dest, tars, scores, numbers = journal.dest, [], set(), []
    totals = {"samples": 0, "shards": 0, "rejects": 0, "bytes": 0, "rows": 0}
    rows_seen = hashlib.sha256()
    for note in notes:
        name = f"{note['shard']:06d}.tar"
        rejects = len(note["rejects"])
        rows_seen.update(note["rows"].encode())
        numbers += [note["shard"]] if rejects else []
        scores |= set(note["scores"])
        if note["samples"]:
            tars.append([name, note["samples"], note["bytes"], *note["index"]])
            row = {"shard": places.join(dest, name), "samples": note["samples"], "bytes": note["bytes"]}
            yield row | {"rejects": rejects} | ({"kept": True} if note.get("kept") else {})
        for key, more in (("samples", note["samples"]), ("bytes", note["bytes"]), ("rejects", rejects)):
            totals[key] += more
        totals["rows"] += note["samples"] + rejects
    totals |= {"shards": len(tars), "input": rows_seen.hexdigest(), "settings": settings, "tars": tars}
    if numbers:
        lines = "".join(dump_row(row) + "\n" for row in journal.rejects(numbers))
        places.write_file(places.join(dest, "rejects.jsonl"), lines.encode())
    if tars:
        wholes = [places.join(dest, name) for name, *_ in tars]
        manifest.write_manifest(places.join(dest, manifest.NAME), wholes, sorted(scores), workers)
    places.write_file(places.join(dest, TOTALS), dump_totals(totals))
    journal.remove()
    return totals


def _compare(groups: Iterator[list[dict]], totals: dict, journal: Journal) -> Iterator[dict]:
    """Yield the shards of a finished folder, having seen that the rows are those that it was made of."""
    rows_seen = hashlib.sha256()
    for said, _ in (digests(with_files(group)) for group in groups):
        rows_seen.update(said.encode())
    if rows_seen.hexdigest() != totals["input"]:
        raise journal.taken("already holds shards")
    journal.remove()
    for name, samples, size, *_ in totals["tars"]:
        yield {"shard": places.join(journal.dest, name), "samples": samples, "bytes": size, "kept": True}

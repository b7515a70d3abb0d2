"""Packing rows into a folder of shards: planning, writing with workers, resuming, and finishing.

Shard k holds the input rows from k * per_shard on; rejected rows leave it shorter. No shard therefore depends
on another one: workers can write them in any order, and a killed run is resumed by writing the missing ones.
The journal (shards/journal.py) holds a note per complete shard.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from lumina_cli.core.errors import LuminaError, TooManyRejects, UsageError
from lumina_cli.core.images.ingest import ENCODINGS
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import locked_folder
from lumina_cli.core.io.jsonl import chunked, dump_row
from lumina_cli.core.io.parallel.process_pool import map_in_order
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.append import (
    REJECTS,
    KnownRows,
    check_changed_files,
    compare_inputs,
    count_rows,
    digest_rejects,
    reopen_folder,
    upstream_rejects,
)
from lumina_cli.core.shards.journal import VERSION, Journal, check_number, digest_rows, encode_images
from lumina_cli.core.shards.overlays.reader import list_overlays
from lumina_cli.core.shards.reader import SELECTED, TOTALS, dump_totals
from lumina_cli.core.shards.writer import Count, ShardJob, ShardSettings, write_shard

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
    upstream: Iterable[dict] = (),
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write rows with images as shards; yield a row per finished shard: shard, samples, bytes, rejects.

        rows      each with an "image" (shards/image_ref.py); "depth" and "masks", PNG bytes or a TarImage,
                  become separate members
        check     "quick" examines the structure of each file, "full" decodes it
        encode    re-encode all images as png, webp, jpg or avif
        count     returns the numbers of tokens of texts, for the index
        upstream  rows {key, image, reason} that an earlier command rejected; they are added to the rejects
        workers   processes that write shards; 0 and 1 mean this process

    Rejected rows go to rejects.jsonl. The folder is the same, byte for byte, for any number of workers and
    any number of interruptions: the same call resumes ("kept": True marks shards of earlier runs). A finished
    folder grows if the input starts with all of its rows; `notify` receives a message about it.

    Raises:
        UsageError: if `dest` holds other shards (`force` removes them), or a setting is invalid.
        LuminaError: if another process writes to `dest`.
        TooManyRejects: after the last shard, if more than the fraction `max_bad_rate` of the rows was
            rejected.
    """
    dest = _check_settings(filesystem.to_text(dest), per_shard, workers, check, encode)
    settings = {"version": VERSION, "per_shard": per_shard, "check": check, "encode": encode}
    settings |= {"tokenizer": getattr(count, "digest", None), "source": source}
    filesystem.make_dir(dest)
    with locked_folder(dest):
        journal = Journal(dest)
        if force:
            journal.clear()
        making = ShardSettings(check == "full", encode, count, source)
        totals = yield from _write_folder(rows, journal, settings, making, list(upstream), workers, notify)
    bad, samples = totals["rejects"], totals["samples"]
    if bad > max_bad_rate * (bad + samples):
        where = filesystem.join(dest, REJECTS)
        fraction = f"{bad} of {bad + samples} images cannot be used"
        raise TooManyRejects(f"{fraction}, more than --max-bad-rate allows; {where} lists the reasons")


def _write_folder(
    rows: Iterable[dict],
    journal: Journal,
    settings: dict,
    making: ShardSettings,
    left_out: list[dict],
    workers: int,
    notify: Callable[[str], None],
) -> Iterator[dict]:
    """Yield a row per shard; return the content of shards.json."""
    groups, kept = chunked(rows, settings["per_shard"]), []
    finished = journal.begin(settings)
    if finished is not None:
        known = compare_inputs(groups, finished, journal)
        if known.rest is None and finished.get("upstream", [0]) == digest_rejects(left_out):
            yield from _report_finished(finished, journal)
            return finished
        # From here on a kill is like one in the first run: the journal has the kept shards.
        _report_growth(finished, known, journal.dest, notify)
        kept = reopen_folder(journal, finished, known.shards)
        groups = known.rest or iter(())
    jobs = _plan_jobs(groups, making, journal, settings["per_shard"], len(kept))
    notes = _require_notes(chain(kept, _run_jobs(jobs, workers)), journal)
    return (yield from _finish(notes, journal, settings, workers, left_out))


def _report_growth(finished: dict, known: KnownRows, dest: str, notify: Callable[[str], None]) -> None:
    """Send a message that a finished folder grows."""
    if known.rest is None:
        return
    kept, count = len(known.shards), count_rows(finished)
    line = f"{dest} grows: the input starts with its {count} rows; shards kept: {kept}"
    line += ", the last one is rewritten" if count > kept * finished["settings"]["per_shard"] else ""
    notify(line + ("; recreate its overlays" if list_overlays(dest) else ""))


def _check_settings(dest: str, per_shard: int, workers: int, check: str, encode: str | None) -> str:
    """Return `dest`.

    Raises:
        UsageError: if a setting is invalid, or shards cannot be written to `dest`.
    """
    if per_shard < 1:
        raise UsageError(f"--per-shard {per_shard}: must be at least 1")
    if workers > 1 and filesystem.is_process_local(dest):
        raise UsageError(
            f"{dest} is in the memory of this process, where workers cannot write; use --workers 1"
        )
    if filesystem.is_file(filesystem.join(dest, SELECTED)):
        raise UsageError(f"{dest} holds a selection; write the shards to another folder")
    for name, value, known in (("check", check, CHECKS), ("encode", encode, (None, *ENCODINGS))):
        if value not in known:
            raise UsageError(f"unknown --{name} {value!r}; choose from {', '.join(filter(None, known))}")
    return dest


def _plan_jobs(
    groups: Iterator[list[dict]], making: ShardSettings, journal: Journal, per_shard: int, start: int
) -> Iterator[ShardJob]:
    """Yield the jobs of the shards from number `start` on.

    Raises:
        UsageError: after the last one, if the journal has notes of shards beyond the input.
    """
    done, first, number = set(journal.finished_shards()), start * per_shard, start - 1
    for number, group in enumerate(groups, start=start):
        check_number(number)
        yield ShardJob(journal.dest, number, first, group, making, number in done)
        first += len(group)
    if any(beyond > number for beyond in done):
        raise journal.conflict("holds an unfinished run over more rows than the input has")


def _run_jobs(jobs: Iterator[ShardJob], workers: int) -> Iterator[dict]:
    """Yield the notes of jobs in order; processes are started for two shards or more only."""
    if workers < 2:
        return map(run_job, jobs)
    ahead = list(islice(jobs, 2))
    jobs = chain(ahead, jobs)
    return map(run_job, jobs) if len(ahead) < 2 else map_in_order(run_job, jobs, workers)


def run_job(job: ShardJob) -> dict:
    """Write a shard unless the journal has its note; return the note (see `write_shard`).

    Raises:
        UsageError: if the note is of other rows, or an image file has changed since.
    """
    journal = Journal(job.dest)
    job = replace(job, rows=encode_images(job.rows))
    note = journal.read(job.number) if job.done else {}
    if not note:
        note = write_shard(job)
        journal.write(note)
        return note
    content, files = digest_rows(job.rows)
    if note["rows"] != content:
        raise journal.conflict(f"holds an unfinished run over different rows (shard {job.number})")
    if note["files"] != files:
        check_changed_files(
            job.dest, job.number, job.first, job.rows, note["rejects"], job.making.encode, every=True
        )
    return note | {"kept": True}


def _require_notes(notes: Iterator[dict], journal: Journal) -> Iterator[dict]:
    """Pass notes on.

    Raises:
        LuminaError: if there are none: the source is empty.
    """
    count = 0
    for note in notes:
        count += 1
        yield note
    if not count:
        journal.remove()
        raise LuminaError("nothing to shard: the source has no rows")


def _finish(
    notes: Iterator[dict], journal: Journal, settings: dict, workers: int, left_out: list[dict]
) -> Iterator[dict]:
    """Yield a row per shard, then write rejects, manifest and, last, shards.json; return its content.

    Only the digests, sizes and rejects in the notes are used, so memory does not grow with the samples.
    """
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
            row = {"shard": filesystem.join(dest, name), "samples": note["samples"], "bytes": note["bytes"]}
            yield row | {"rejects": rejects} | ({"kept": True} if note.get("kept") else {})
        for key, more in (("samples", note["samples"]), ("bytes", note["bytes"]), ("rejects", rejects)):
            totals[key] += more
        totals["rows"] += note["samples"] + rejects
    totals |= {"shards": len(tars), "input": rows_seen.hexdigest(), "settings": settings, "tars": tars}
    before = upstream_rejects(left_out, totals["rows"])
    if before:
        totals |= {name: totals[name] + len(before) for name in ("rows", "rejects")}
        totals["upstream"] = digest_rejects(left_out)
    if totals["rejects"]:
        lines = "".join(dump_row(row) + "\n" for row in chain(journal.rejects(numbers), before))
        filesystem.write_file(filesystem.join(dest, REJECTS), lines.encode())
    else:
        filesystem.remove(dest, [REJECTS])
    if tars:
        places = [filesystem.join(dest, name) for name, *_ in tars]
        manifest.write_manifest(filesystem.join(dest, manifest.NAME), places, sorted(scores), workers)
    filesystem.write_file(filesystem.join(dest, TOTALS), dump_totals(totals))
    journal.remove()
    return totals


def _report_finished(totals: dict, journal: Journal) -> Iterator[dict]:
    """Yield the rows of a finished folder."""
    journal.remove()
    for name, samples, size, *_ in totals["tars"]:
        yield {"shard": filesystem.join(journal.dest, name), "samples": samples, "bytes": size, "kept": True}

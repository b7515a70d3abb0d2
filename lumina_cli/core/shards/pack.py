"""From rows to a folder of shards: which rows each shard holds, who writes it, and going on after a kill.

Shard k holds the rows from k * per_shard on, so no shard depends on another; rows that cannot be used leave
theirs short. The journal (journal.py) notes each shard once it is whole.
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
from lumina_cli.core.io.process_pool import map_in_order
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
    """Write rows with pictures as shards; yield a row per finished shard: shard, samples, bytes, rejects.

    `rows` need an "image": a path, a URL, a PIL picture, the bytes of a picture file or a TarImage. "depth"
    and "masks", bytes of a PNG or a TarImage, become members of their own. Rows that cannot be used go to
    rejects.jsonl; after the last shard TooManyBad is raised if more than `max_bad_rate` of all did.

    The folder is the same, byte for byte, for any number of `workers` (0 and 1: this process), and however
    often the run was killed before: a run over the same rows with the same settings goes on where the last
    one ended ("kept": True in a row of a shard that was there). A finished folder grows where the rows begin
    with all those that it was made from; `notify` hears of it. UsageError where `dest` holds other shards,
    which `force` removes; LuminaError where another process writes there.

    `check`: "quick" looks at the parts of each file, "full" decodes it; `encode` writes all pictures as png,
    webp, jpg or avif; `count` gives the tokens of texts for the index. `upstream` are rows {key, image,
    reason} that were left out before they came here: they are rejects, too.
    """
    dest = _checked(filesystem.to_text(dest), per_shard, workers, check, encode)
    settings = {"version": VERSION, "per_shard": per_shard, "check": check, "encode": encode}
    settings |= {"tokenizer": getattr(count, "digest", None), "source": source}
    filesystem.make_dir(dest)
    with locked_folder(dest):
        journal, left_out = Journal(dest), list(upstream)
        if force:
            journal.clear()
        groups, kept = chunked(rows, per_shard), []
        finished = journal.begin(settings)
        if finished is not None:
            known = compare_inputs(groups, finished, journal)
            if known.rest is None and finished.get("upstream", [0]) == digest_rejects(left_out):
                yield from _there(finished, journal)
            else:
                _report_growth(finished, known, dest, notify)
                kept, finished = reopen_folder(journal, finished, known.shards), None
                groups = known.rest or iter(())
        if finished is None:
            making = ShardSettings(check == "full", encode, count, source)
            jobs = _jobs(groups, making, journal, per_shard, len(kept))
            notes = _watched(chain(kept, _run(jobs, workers)), journal)
            finished = yield from _finish(notes, journal, settings, workers, left_out)
    bad, samples = finished["rejects"], finished["samples"]
    if bad > max_bad_rate * (bad + samples):
        where = filesystem.join(dest, REJECTS)
        share = f"{bad} of {bad + samples} pictures cannot be used"
        raise TooManyRejects(f"{share}, more than --max-bad-rate allows; {where} says why")


def _report_growth(finished: dict, known: KnownRows, dest: str, notify: Callable[[str], None]) -> None:
    if known.rest is None:
        return
    kept, count = len(known.shards), count_rows(finished)
    line = f"{dest} grows: its {count} rows are the first of these; shards kept: {kept}"
    line += ", the last one is written anew" if count > kept * finished["settings"]["per_shard"] else ""
    notify(line + ("; its overlays are to be made again" if list_overlays(dest) else ""))


def _checked(dest: str, per_shard: int, workers: int, check: str, encode: str | None) -> str:
    if per_shard < 1:
        raise UsageError(f"a shard holds at least 1 sample, not {per_shard}")
    if workers > 1 and filesystem.is_process_local(dest):
        raise UsageError(f"{dest} is in the memory of this process; other workers cannot write there")
    if filesystem.is_file(filesystem.join(dest, SELECTED)):
        raise UsageError(f"{dest} holds a selection; give the shards a folder of their own")
    for name, word, words in (("check", check, CHECKS), ("encode", encode, (None, *ENCODINGS))):
        if word not in words:
            raise UsageError(f"unknown --{name} {word!r}; choose from {', '.join(filter(None, words))}")
    return dest


def _jobs(
    groups: Iterator[list[dict]], making: ShardSettings, journal: Journal, per_shard: int, start: int
) -> Iterator[ShardJob]:
    """Yield the jobs of shards from number `start` on."""
    done, first, number = set(journal.finished_shards()), start * per_shard, start - 1
    for number, group in enumerate(groups, start=start):
        check_number(number)
        yield ShardJob(journal.dest, number, first, group, making, number in done)
        first += len(group)
    if any(beyond > number for beyond in done):
        raise journal.conflict("holds an unfinished run over more rows")


def _run(jobs: Iterator[ShardJob], workers: int) -> Iterator[dict]:
    """Yield the notes of jobs in order; a single shard is not worth another process."""
    if workers < 2:
        return map(run_job, jobs)
    ahead = list(islice(jobs, 2))
    jobs = chain(ahead, jobs)
    return map(run_job, jobs) if len(ahead) < 2 else map_in_order(run_job, jobs, workers)


def run_job(job: ShardJob) -> dict:
    """Write a shard that the journal does not have yet; return its note (see `write_shard`).

    UsageError where the journal has it with other rows, or a picture of theirs has changed.
    """
    journal = Journal(job.dest)
    job = replace(job, rows=encode_images(job.rows))
    note = journal.read(job.number) if job.done else {}
    if not note:
        note = write_shard(job)
        journal.write(note)
        return note
    said, files = digest_rows(job.rows)
    if note["rows"] != said:
        raise journal.conflict(f"holds an unfinished run over other rows (shard {job.number})")
    if note["files"] != files:
        check_changed_files(
            job.dest, job.number, job.first, job.rows, note["rejects"], job.making.encode, every=True
        )
    return note | {"kept": True}


def _watched(notes: Iterator[dict], journal: Journal) -> Iterator[dict]:
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
        wholes = [filesystem.join(dest, name) for name, *_ in tars]
        manifest.write_manifest(filesystem.join(dest, manifest.NAME), wholes, sorted(scores), workers)
    filesystem.write_file(filesystem.join(dest, TOTALS), dump_totals(totals))
    journal.remove()
    return totals


def _there(totals: dict, journal: Journal) -> Iterator[dict]:
    """Yield the shards of a finished folder."""
    journal.remove()
    for name, samples, size, *_ in totals["tars"]:
        yield {"shard": filesystem.join(journal.dest, name), "samples": samples, "bytes": size, "kept": True}

"""Packing rows into a folder of shards: planning, writing with workers, resuming, and finishing.

In a first run, shard k holds the input rows from k * per_shard on; rejected rows leave it shorter. No shard
therefore depends on another one: workers can write them in any order, and a killed run is resumed by writing
the missing ones. The journal (shards/journal.py) holds a note per complete shard. A finished folder is
updated (shards/update/): samples that did not change stay where they are.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from lumina_cli.core.errors import LuminaError, TooManyRejects, UsageError
from lumina_cli.core.images.ingest import ENCODINGS
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import locked_folder
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.io.parallel.workers import Workers, parse_workers, run_items
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.journal import VERSION, Journal, check_number, digest_rows, encode_images
from lumina_cli.core.shards.overlays.lock import release_all
from lumina_cli.core.shards.reader import SELECTED, TOTALS, dump_totals, open_shards, read_totals
from lumina_cli.core.shards.sample import Count, ShardSettings
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.shards.update.changes import is_changed_file
from lumina_cli.core.shards.update.commit import Staging
from lumina_cli.core.shards.update.plan import REMOVED
from lumina_cli.core.shards.update.rejects import REJECTS, digest_rejects, dump_rejects, upstream_rejects
from lumina_cli.core.shards.update.run import Notify, UpdateSettings, preview_update, update_folder
from lumina_cli.core.shards.writer import ShardJob, write_shard

CHECKS = ("quick", "full")


def write_shards(
    rows: Iterable[dict],
    dest: str | Path,
    per_shard: int = 1000,
    max_bad_rate: float = 0.05,
    force: bool = False,
    *,
    workers: int | str | Workers = 0,
    check: str = "quick",
    encode: str | None = None,
    count: Count | None = None,
    source: str | None = None,
    upstream: Iterable[dict] = (),
    removed: str | None = None,
    dry_run: bool = False,
    notify: Notify = lambda line: None,
) -> Iterator[dict]:
    """Write rows with images as shards; yield a row per finished shard: shard, samples, bytes, rejects.

        rows      each with an "image" (shards/image_ref.py); "depth" and "masks", PNG bytes or a TarImage,
                  become separate members
        check     "quick" examines the structure of each file, "full" decodes it
        encode    re-encode all images as png, webp, jpg or avif
        count     returns the numbers of tokens of texts, for the index
        upstream  rows {key, image, reason} that an earlier command rejected; they are added to the rejects
        workers   processes that write shards; 0 and 1 mean this process; "ray" or "ray:N": Ray workers
        removed   what happens to samples of a finished folder that the input does not have: "drop", "keep",
                  or None: an error
        dry_run   write nothing; yield a row per shard: shard, action (keep, rewrite or write), and counts

    Rejected rows go to rejects.jsonl. The folder is the same, byte for byte, for any number of workers and
    any number of interruptions: the same call resumes ("kept": True marks shards of earlier runs). A finished
    folder is updated: shards with added, changed or removed samples are rewritten, all others stay. `notify`
    receives a message about the changes.

    Raises:
        UsageError: if `dest` holds other shards (`force` removes them), a sample is missing in the input, or
            a setting is invalid.
        LuminaError: if another process writes to `dest`.
        TooManyRejects: after the last shard, if more than the fraction `max_bad_rate` of the rows was
            rejected.
    """
    dest, workers = filesystem.to_text(dest), parse_workers(workers)
    _check_settings(dest, per_shard, workers, check, encode, removed)
    settings = {"version": VERSION, "per_shard": per_shard, "check": check, "encode": encode}
    settings |= {"tokenizer": getattr(count, "digest", None), "source": source}
    making = ShardSettings(check == "full", encode, count, source)
    places = {"outputs": [dest], "inputs": [source] if source and os.path.exists(source) else []}
    run = partial(run_items, workers=workers, **places, notify=notify)
    update = UpdateSettings(making, settings, list(upstream), removed, run, workers.processes)
    journal = Journal(dest)
    if dry_run:
        yield from _preview(rows, journal, update, notify, force)
        return
    filesystem.make_dir(dest)
    release_all(dest)
    with locked_folder(dest):
        if force:
            Staging(dest).discard()
            journal.clear()
        totals = yield from _write_folder(rows, journal, update, notify)
    bad, samples = totals["rejects"], totals["samples"]
    if bad > max_bad_rate * (bad + samples):
        where = filesystem.join(dest, REJECTS)
        fraction = f"{bad} of {bad + samples} images cannot be used"
        raise TooManyRejects(f"{fraction}, more than --max-bad-rate allows; {where} lists the reasons")


def _write_folder(
    rows: Iterable[dict], journal: Journal, update: UpdateSettings, notify: Callable[[str], None]
) -> Iterator[dict]:
    """Yield a row per shard; return the content of shards.json."""
    Staging(journal.dest).complete(update.workers)
    finished = journal.begin(update.settings, notify)
    if finished is not None:
        journal.remove()
        open_shards(journal.dest)  # raises an error if files are missing
        return (yield from update_folder(rows, journal.dest, finished, update, notify))
    groups = chunked(rows, update.settings["per_shard"])
    jobs = _plan_jobs(groups, update.making, journal, update.settings["per_shard"])
    notes = _require_notes(update.run(run_job, jobs), journal)
    return (yield from _finish(notes, journal, update, notify))


def _preview(
    rows: Iterable[dict],
    journal: Journal,
    update: UpdateSettings,
    notify: Callable[[str], None],
    force: bool,
) -> Iterator[dict]:
    """Yield a row per shard with what a run would do: shard, action (keep, rewrite or write), and counts."""
    totals = None if force else read_totals(journal.dest)
    if totals is not None:
        journal.check_finished(totals, update.settings)
        open_shards(journal.dest)
        yield from preview_update(rows, journal.dest, totals, update.making, update.removed, notify)
        return
    for number, group in enumerate(chunked(rows, update.settings["per_shard"])):
        check_number(number)
        note = {} if force else journal.read(number)
        same = note and note["rows"] == digest_rows(encode_images(group))[0]
        action = "keep" if same else "write"
        shard = filesystem.join(journal.dest, f"{number:06d}.tar")
        yield {"shard": shard, "action": action, "rows": len(group)}


def _check_settings(
    dest: str, per_shard: int, workers: Workers, check: str, encode: str | None, removed: str | None
) -> None:
    """Check the settings, and that shards can be written to `dest`.

    Raises:
        UsageError: if a setting is invalid, or shards cannot be written to `dest`.
    """
    if per_shard < 1:
        raise UsageError(f"--per-shard {per_shard}: must be at least 1")
    workers.check_output(dest)
    if filesystem.is_file(filesystem.join(dest, SELECTED)):
        raise UsageError(f"{dest} holds a selection; write the shards to another folder")
    choices = (("check", check, CHECKS), ("encode", encode, (None, *ENCODINGS)))
    for name, value, known in (*choices, ("removed", removed, (None, *REMOVED))):
        if value not in known:
            raise UsageError(f"unknown --{name} {value!r}; choose from {', '.join(filter(None, known))}")


def _plan_jobs(
    groups: Iterator[list[dict]], making: ShardSettings, journal: Journal, per_shard: int
) -> Iterator[ShardJob]:
    """Yield the jobs of the shards; remove shards of an unfinished run beyond the input."""
    done, number = set(journal.finished_shards()), -1
    for number, group in enumerate(groups):
        check_number(number)
        yield ShardJob(journal.dest, number, number * per_shard, group, making, number in done)
    if number >= 0:
        journal.drop([beyond for beyond in sorted(done) if beyond > number])


def run_job(job: ShardJob) -> dict:
    """Write a shard of a first run; return its note (see `write_shard`).

    A shard of an interrupted run is kept if it was made from the same rows and files; otherwise it is written
    again, and the note returned has "replaced".
    """
    journal = Journal(job.dest)
    job = replace(job, rows=encode_images(job.rows))
    note = journal.read(job.number) if job.done else {}
    if note and _is_current(job, note):
        return note | {"kept": True}
    replaced = {"replaced": True} if note else {}
    note = write_shard(job)
    journal.write(note)
    return note | replaced


def _is_current(job: ShardJob, note: dict) -> bool:
    """Whether a complete shard holds the rows of a job, and their files have not changed since."""
    content, files = digest_rows(job.rows)
    if note["rows"] != content:
        return False
    if note["files"] == files:
        return True
    left_out = {reject["row"] for reject in note["rejects"]}
    kept = [row for number, row in enumerate(job.rows, job.first) if number not in left_out]
    entries = read_index(filesystem.join(job.dest, f"{job.number:06d}.tar")) if kept else []
    return len(kept) == len(job.rows) and not any(
        is_changed_file(row, entry, lambda: None, job.making, every=True)
        for row, entry in zip(kept, entries, strict=True)
    )


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
    notes: Iterator[dict], journal: Journal, update: UpdateSettings, notify: Notify
) -> Iterator[dict]:
    """Yield a row per shard, then write rejects, manifest and, last, shards.json; return its content.

    Only the digests, sizes and rejects in the notes are used, so memory does not grow with the samples.
    """
    dest, tars, scores, numbers = journal.dest, [], set(), []
    totals = {"samples": 0, "shards": 0, "rejects": 0, "bytes": 0, "rows": 0}
    rows_seen, replaced = hashlib.sha256(), 0
    for note in notes:
        replaced += note.get("replaced", False)
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
    if replaced:
        notify(f"{dest}: {replaced} shards of an unfinished run over other rows or files were written again")
    totals |= {"shards": len(tars), "input": rows_seen.hexdigest(), "settings": update.settings, "tars": tars}
    before = upstream_rejects(update.left_out, totals["rows"])
    if before:
        totals |= {name: totals[name] + len(before) for name in ("rows", "rejects")}
        totals["upstream"] = digest_rejects(update.left_out)
    if totals["rejects"]:
        lines = dump_rejects(chain(journal.rejects(numbers), before))
        filesystem.write_file(filesystem.join(dest, REJECTS), lines)
    else:
        filesystem.remove(dest, [REJECTS])
    if tars:
        places = [filesystem.join(dest, name) for name, *_ in tars]
        manifest.write_manifest(filesystem.join(dest, manifest.NAME), places, sorted(scores), update.workers)
    filesystem.write_file(filesystem.join(dest, TOTALS), dump_totals(totals))
    journal.remove()
    return totals

"""Scoring shards: each image is measured once, and the values are stored as an overlay named "scores".

A new set of scores writes a new version. It reuses the values of the newest version for the same images and
measures the others; values of another model, or of an older definition of a score (RECIPES), are not reused.
A worker scores one shard at a time; a killed run resumes after its last complete shard.

"caption" is the only score that is not computed from the image: it is the mean of the scores of its captions
by `lumina caption --score`, read from the rows.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from lumina_cli.core.curation.metrics import DIGITS, RECIPES, Metric, measure, open_metrics
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.parallel.workers import Workers, parse_workers, run_items
from lumina_cli.core.shards.overlays.joiner import OverlayJoiner
from lumina_cli.core.shards.overlays.reader import (
    MEASURED,
    Overlay,
    find_overlays,
    newest_version,
)
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Part, Version, make_row_part, write_values
from lumina_cli.core.shards.reader import open_shards, read_entry, read_totals
from lumina_cli.core.shards.selection import resolve_shards, selected_keys
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.bad_images import UnreadableImages, open_entry

NAME, CAPTION = MEASURED, "caption"
BATCH = 16  # images measured together
GPU_SCORES = {"aesthetic", "nsfw"}  # computed by networks


@dataclass(frozen=True)
class _ScoreJob:
    """One shard to score.

    version  the new version of the overlay, whose settings contain the scores and their models
    tar      the shard
    before   the previous version, if any
    kept     names of scores whose previous values are still valid
    wanted   keys of the samples to score; None: all
    """

    version: Version
    tar: str
    before: Overlay | None
    kept: frozenset[str]
    wanted: frozenset[str] | None


def score_shards(
    source: str,
    names: Iterable[str],
    models: dict[str, str] | None = None,
    workers: int | str | Workers = 1,
    max_bad_rate: float = 1.0,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Measure the images of shards; yield a row per shard: shard, samples, measured, reused, unreadable.

    source        folder of shards, or a selection, whose samples alone are measured; the values are stored
                  with the shards in both cases
    names         keys of SCORES, or "caption"
    models        name of a score -> folder or hub id of its model
    workers       processes, or "ray" or "ray:N": Ray workers
    max_bad_rate  fraction of the images that may be unreadable
    notify        receives messages about unreadable images

    An unreadable image has no scores; its line of the overlay's index contains the reason under "unreadable".

    Raises:
        UsageError, LuminaError, MissingDependency: see `open_metrics`; before anything is written.
        TooManyRejects: at the end, if more than `max_bad_rate` of the images are unreadable.
    """
    names, models, workers = list(dict.fromkeys(names)), models or {}, parse_workers(workers, 1)
    folder, chosen = resolve_shards(source), selected_keys(source)
    tars, workers = open_shards(folder), workers.for_output(folder)
    open_metrics([name for name in names if name != CAPTION], models)
    before = newest_version(folder, NAME)
    settings = before.info["settings"] if before else {}
    known, recipes = settings.get("scores", {}), settings.get("recipes", {})
    requested = {name: models.get(name, known.get(name)) for name in names}
    if CAPTION in requested:
        requested[CAPTION] = _captions_version(folder)
    models_by = known | requested
    now = {name: RECIPES.get(name, 1) for name in models_by}
    version = begin_version(folder, NAME, {"scores": models_by, "recipes": now})
    same = {name for name in known if recipes.get(name, 1) == now[name]}
    kept = frozenset(name for name in same if models_by[name] == known[name])
    wanted = [None if chosen is None else chosen.get(filesystem.basename(tar), frozenset()) for tar in tars]
    jobs = [_ScoreJob(version, tar, before, kept, keys) for tar, keys in zip(tars, wanted, strict=True)]
    files = [model.partition("#")[0] for name in names if (model := models.get(name))]
    files = [file for file in files if os.path.exists(file)]
    seen = UnreadableImages(max_bad_rate, notify)
    places = {"outputs": [folder], "inputs": [*tars[:1], *files]}
    gpu = bool(GPU_SCORES & set(names))
    for row, bad in run_items(_score_shard, jobs, workers, **places, gpu=gpu, notify=notify):
        seen.add(row["shard"], bad, row["measured"] + row["reused"] + row["unreadable"])
        yield row
    write_values(version, tars)
    version.finish(tars)
    seen.end(version.folder)


def _captions_version(folder: str) -> str:
    """Return a text that identifies the captions: the rows, and the contents of all overlays."""
    edits = (read_totals(folder) or {}).get("edits")  # updates that changed rows
    rows = f"rows {edits}" if edits else "rows"
    return ",".join([rows, *(f"{one.name}@{one.version}:{_content_of(one)}" for one in _others(folder))])


def _content_of(overlay: Overlay) -> str:
    """Return what identifies the contents of an overlay; overlays without digests are identified by order."""
    digest = overlay.info.get("digests", {}).get("indexes")
    return digest[:16] if isinstance(digest, str) else f"order {overlay.order[0]}"


def _others(folder: str) -> list[Overlay]:
    """Return all overlays except for the scores."""
    return [overlay for overlay in find_overlays(folder) if overlay.name != NAME]


@lru_cache
def _open_metric(name: str, model: str | None) -> Metric:
    """Return a metric, opened once in each process."""
    return open_metrics([name], {name: model} if model else {})[name]


def _score_shard(job: _ScoreJob) -> tuple[dict, dict[str, str]]:
    """Score a shard; return its row, and key -> reason of each unreadable image."""
    entries, bad = read_index(job.tar), {}
    row = {"shard": job.tar, "samples": len(entries), "measured": 0, "reused": 0, "unreadable": 0}
    if job.version.has(job.tar, entries):
        known, names = job.version.lines(job.tar, entries), set(job.version.settings["scores"])
        wanted = job.wanted if job.wanted is not None else [entry["key"] for entry in entries]
        if all(key in known and names <= set(known[key]["by"]) for key in wanted):
            bad = {key: known[key]["unreadable"] for key in wanted if "unreadable" in known[key]}
            return row | {"reused": len(wanted) - len(bad), "unreadable": len(bad)}, bad
    job.version.write(job.tar, entries, _parts(job, entries, row, bad))
    return row | {"unreadable": len(bad)}, bad


@dataclass
class _Scored:
    """The state of one sample while its shard is scored.

    entry   its entry in the shard's index
    values  {"scores": {...}, "hashes": {...}} so far
    by      names of the scores that are known, also of an unreadable image
    wanted  whether it is to be scored
    fault   why its image is unreadable, or None
    """

    entry: dict
    values: dict
    by: frozenset[str]
    wanted: bool
    fault: str | None


def _parts(job: _ScoreJob, entries: list[dict], row: dict, bad: dict[str, str]) -> Iterator[Part]:
    """Yield the scores of each sample; update the counts in `row`, and `bad` as in `_score_shard`."""
    models = job.version.settings["scores"]
    known = job.before.open(job.tar, entries) if job.before else {}
    add = OverlayJoiner(_others(job.version.shards)).open(job.tar, entries) if CAPTION in models else None
    for start in range(0, len(entries), BATCH):
        samples = [_reuse(job, entry, known) for entry in entries[start : start + BATCH]]
        _measure_missing(job, samples, row)
        for sample in samples:
            if not sample.wanted and not sample.values and not sample.fault:
                continue
            if sample.wanted and sample.fault:
                bad[sample.entry["key"]] = sample.fault
            if add and sample.wanted:
                _add_caption_score(job, sample, add)
            by = sorted(models if sample.wanted else sample.by - {CAPTION})
            entry, members, more = make_row_part(sample.entry, sample.values)
            yield entry, members, more | {"by": by} | ({"unreadable": sample.fault} if sample.fault else {})


def _reuse(job: _ScoreJob, entry: dict, known: dict[str, dict]) -> _Scored:
    """Return a sample with the scores of the previous version that are still valid."""
    line = known.get(entry["key"], {})
    # The score of captions is cheap to compute and may have changed with them.
    values = _valid_values(line, job.kept - {CAPTION})
    wanted = job.wanted is None or entry["key"] in job.wanted
    return _Scored(entry, values, job.kept & set(line.get("by", ())), wanted, line.get("unreadable"))


def _measure_missing(job: _ScoreJob, samples: list[_Scored], row: dict) -> None:
    """Add the missing scores to the samples of a batch; samples that miss the same scores are one batch."""
    models = job.version.settings["scores"]
    missing = [
        tuple(sorted(models.keys() - sample.by - {CAPTION})) if sample.wanted else () for sample in samples
    ]
    for names in dict.fromkeys(missing):
        group = [sample for sample, each in zip(samples, missing, strict=True) if each == names]
        if not names:
            row["reused"] += sum(sample.wanted and not sample.fault for sample in group)
            continue
        images = []
        for sample in group:
            opened = open_entry(job.tar, sample.entry)
            sample.fault = opened if isinstance(opened, str) else None
            images.append(opened)
        readable = [i for i, sample in enumerate(group) if sample.fault is None]
        row["measured"] += len(readable)
        metrics = {name: _open_metric(name, models[name]) for name in names}
        for i, part in zip(readable, measure([images[i] for i in readable], metrics), strict=True):
            for kind, values in part.items():
                group[i].values.setdefault(kind, {}).update(values)


def _add_caption_score(job: _ScoreJob, sample: _Scored, add: Callable[[dict, dict], dict]) -> None:
    """Add the score of the captions of a sample, if they have one; `add` applies overlays to its row."""
    score = caption_score(add(sample.entry, read_entry(job.tar, sample.entry)))
    if score is not None:
        sample.values.setdefault("scores", {})[CAPTION] = score


def caption_score(row: dict) -> float | None:
    """Return the mean of a row's "caption_scores" {language: {level: number}}, or None if it has none."""
    scores = row.get("caption_scores")
    levels = [each for each in scores.values() if isinstance(each, dict)] if isinstance(scores, dict) else []
    numbers = [float(n) for each in levels for n in each.values() if isinstance(n, int | float)]
    return round(sum(numbers) / len(numbers), DIGITS) if numbers else None


def _valid_values(line: dict, kept: frozenset[str]) -> dict:
    """Return the values of a line of an index whose names are in `kept`."""
    parts = {
        kind: {n: v for n, v in line.get(kind, {}).items() if n in kept} for kind in ("scores", "hashes")
    }
    return {kind: values for kind, values in parts.items() if values}

"""Scoring shards: each picture is measured once, the values are kept as an overlay called "scores".

A new set of scores makes a new version, which takes over what the newest one knows of the same pictures and
measures the rest: values of another model, or of a score that is made otherwise since (RECIPES), are not
taken over. Workers take a shard at a time; a killed run goes on after its last whole shard.

"caption" is the one score that is not of the picture: the mean of what `lumina caption --score` said of its
captions, read from the rows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from lumina_cli.core.curation.metrics import DIGITS, RECIPES, Metric, measure, open_metrics
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.process_pool import map_in_order
from lumina_cli.core.shards.overlays.reader import (
    MEASURED,
    Overlay,
    OverlayJoiner,
    find_overlays,
    newest_version,
)
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Part, Version, make_row_part, write_values
from lumina_cli.core.shards.reader import open_shards, read_entry, read_index
from lumina_cli.core.shards.selection import resolve_shards, selected_keys
from lumina_cli.core.sources.bad_images import UnreadableImages, open_entry

NAME, CAPTION = MEASURED, "caption"
BATCH = 16  # pictures that a model sees together


@dataclass(frozen=True)
class _ScoreJob:
    """One shard to score: by what, and which names of the version before still hold."""

    version: Version
    tar: str
    before: Overlay | None
    kept: frozenset[str]
    wanted: frozenset[str] | None  # keys; None: all


def score_shards(
    source: str,
    names: Iterable[str],
    models: dict[str, str] | None = None,
    workers: int = 1,
    max_bad_rate: float = 1.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Measure pictures of shards; yield a row per shard: shard, samples, measured, reused, unreadable.

    Of a selection only its samples are measured; the values are kept beside the shards all the same.
    `names` are keys of SCORES, or "caption"; `models` gives a folder or hub id to those that have one. Raises
    what `open_scorers` raises, before anything is written. A picture that cannot be read has no scores, its
    line of the overlay's index says why under "unreadable", and `tell` hears of the first; TooManyBad at the
    end where they are a larger share than `max_bad_rate`.
    """
    names, models = list(dict.fromkeys(names)), models or {}
    folder, chosen = resolve_shards(source), selected_keys(source)
    tars = open_shards(folder)
    open_metrics([name for name in names if name != CAPTION], models)
    before = newest_version(folder, NAME)
    settings = before.info["settings"] if before else {}
    known, recipes = settings.get("scores", {}), settings.get("recipes", {})
    asked = {name: models.get(name, known.get(name)) for name in names}
    if CAPTION in asked:
        asked[CAPTION] = _captions_of(folder)
    wanted_by = known | asked
    now = {name: RECIPES.get(name, 1) for name in wanted_by}
    version = begin_version(folder, NAME, {"scores": wanted_by, "recipes": now})
    same = {name for name in known if recipes.get(name, 1) == now[name]}
    kept = frozenset(name for name in same if wanted_by[name] == known[name])
    wanted = [None if chosen is None else chosen.get(filesystem.basename(tar), frozenset()) for tar in tars]
    jobs = [_ScoreJob(version, tar, before, kept, keys) for tar, keys in zip(tars, wanted, strict=True)]
    alone = workers <= 1 or len(jobs) < 2 or filesystem.is_process_local(folder)
    seen = UnreadableImages(max_bad_rate, tell)
    for row, bad in map(_score_shard, jobs) if alone else map_in_order(_score_shard, jobs, workers):
        seen.add(row["shard"], bad, row["measured"] + row["reused"] + row["unreadable"])
        yield row
    write_values(version, tars)
    version.finish(tars)
    seen.end(version.folder)


def _captions_of(folder: str) -> str:
    """What the scores of captions are read from: the shards, and these overlays with what they hold now."""
    return ",".join(["rows", *(f"{one.name}@{one.version}:{_content_of(one)}" for one in _others(folder))])


def _content_of(overlay: Overlay) -> str:
    """What tells an overlay from another one of its name and number; of old ones, when it was begun."""
    digest = overlay.info.get("digests", {}).get("indexes")
    return digest[:16] if isinstance(digest, str) else f"order {overlay.order[0]}"


def _others(folder: str) -> list[Overlay]:
    return [overlay for overlay in find_overlays(folder) if overlay.name != NAME]


@lru_cache
def _open(name: str, model: str | None) -> Metric:
    """What measures, made once in each process."""
    return open_metrics([name], {name: model} if model else {})[name]


def _score_shard(job: _ScoreJob) -> tuple[dict, dict[str, str]]:
    """Return the row of a shard, and by key why a picture cannot be read."""
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


def _parts(job: _ScoreJob, entries: list[dict], row: dict, bad: dict[str, str]) -> Iterator[Part]:
    """Yield the scores of each sample, counting in `row` what was done; `bad` as in `_score_shard`."""
    models = job.version.settings["scores"]
    known = job.before.open(job.tar, entries, strict=False) if job.before else {}
    add = OverlayJoiner(_others(job.version.shards)).open(job.tar, entries) if CAPTION in models else None
    for start in range(0, len(entries), BATCH):
        group = entries[start : start + BATCH]
        lines = [known.get(entry["key"], {}) for entry in group]
        found = [_still(line, job.kept - {CAPTION}) for line in lines]
        done = [job.kept & set(line.get("by", ())) for line in lines]  # unreadable pictures, too
        meant = [job.wanted is None or entry["key"] in job.wanted for entry in group]
        faults = [line.get("unreadable") for line in lines]
        todo = [
            models.keys() - names - {CAPTION} if here else set()
            for names, here in zip(done, meant, strict=True)
        ]
        missing = [tuple(sorted(names)) for names in todo]
        for wanted in dict.fromkeys(missing):
            numbers = [i for i, names in enumerate(missing) if names == wanted]
            if not wanted:
                row["reused"] += sum(meant[i] and not faults[i] for i in numbers)
                continue
            opened = {i: open_entry(job.tar, group[i]) for i in numbers}
            for i, each in opened.items():
                faults[i] = each if isinstance(each, str) else None
            pictures = {i: picture for i, picture in opened.items() if not isinstance(picture, str)}
            row["measured"] += len(pictures)
            scorers = {name: _open(name, models[name]) for name in wanted}
            for i, part in zip(pictures, measure(list(pictures.values()), scorers), strict=True):
                for kind, values in part.items():
                    found[i].setdefault(kind, {}).update(values)
        for entry, part, names, here, fault in zip(group, found, done, meant, faults, strict=True):
            if not here and not part and not fault:
                continue
            if here and fault:
                bad[entry["key"]] = fault
            if add and here and (score := caption_score(add(entry, read_entry(job.tar, entry)))) is not None:
                part.setdefault("scores", {})[CAPTION] = score
            known_by = sorted(models if here else names - {CAPTION})
            entry, members, more = make_row_part(entry, part)
            yield entry, members, more | {"by": known_by} | ({"unreadable": fault} if fault else {})


def caption_score(row: dict) -> float | None:
    """Return the mean of a row's "caption_scores" {language: {level: number}}, None where it has none."""
    scores = row.get("caption_scores")
    levels = [each for each in scores.values() if isinstance(each, dict)] if isinstance(scores, dict) else []
    numbers = [float(n) for each in levels for n in each.values() if isinstance(n, int | float)]
    return round(sum(numbers) / len(numbers), DIGITS) if numbers else None


def _still(line: dict, kept: frozenset[str]) -> dict:
    """The scores of a line of an index that still hold."""
    parts = {
        kind: {n: v for n, v in line.get(kind, {}).items() if n in kept} for kind in ("scores", "hashes")
    }
    return {kind: values for kind, values in parts.items() if values}

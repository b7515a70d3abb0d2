"""Selecting samples for a training stage: filters, duplicates, sources, and a fraction of the best.

The steps always have the same order: samples that meet the conditions; one of each group of duplicates (of
near duplicates the one with the most pixels, then the best one); at most a number of samples per source (the
best ones); the best of the remaining samples. Ties go to the first sample, so the same shards and settings
select the same samples. A selection contains references; images are not copied.

The sample table is read in parts, twice: first the columns that the decision needs, keeping few
bytes per sample (columns.py), then the columns that are written.

N samples; S of them remain so far.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from lumina_cli.core.curation.columns import (
    SCORE,
    ColumnBuilder,
    SelectionColumns,
    as_array,
    best_of,
    best_of_each,
    numbers,
)
from lumina_cli.core.curation.dedup import keep_best
from lumina_cli.core.curation.filter_expr import Comparison, column, evaluate, inputs, parse_where
from lumina_cli.core.curation.sample_table import PLACE, Samples
from lumina_cli.core.curation.scores import CAPTION, caption_score
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import locked_folder
from lumina_cli.core.shards.selection import check_dest, read_samples, write_selection

DUPLICATES = ("exact", "near")
MAX_DISTANCE = 16  # bits; at larger distances half of all images would be near duplicates
# Metrics whose higher values are better: they may replace a missing "score".
BETTER = (CAPTION, "aesthetic", "sharpness")
FIRST = 1000  # rows that are searched for scores of captions


@dataclass(frozen=True)
class SelectionSettings:
    """Settings of a selection.

    best        a fraction up to 1.0 (float) or a number of samples (int); None: all
    by          the column to rank by, higher is better
    where       conditions that all must be met (curation/filter_expr.py)
    copies      None; "exact": keep one of each image; "near": keep one of each group of similar images
    distance    maximum number of different bits, of 64, between the perceptual hashes of near duplicates
    per_source  maximum number of samples per source
    """

    best: float | int | None = None
    by: str = SCORE
    where: Sequence[str] = ()
    copies: str | None = None
    distance: int = 4
    per_source: int | None = None


def parse_best(text: str) -> float | int:
    """Parse --best: a number from 1 without a dot is a number of samples (int), others are fractions (float).

    Raises:
        UsageError: if the text is neither.
    """
    try:
        value = float(text)
        if "." not in text and value >= 1:
            return int(text)
        if 0 < value <= 1:
            return value
    except ValueError:
        pass
    raise UsageError(f"--best {text}: expected a fraction up to 1.0 or a whole number of samples")


def select_samples(source: str, dest: str, choice: SelectionSettings, force: bool = False) -> dict:
    """Write a selection of a SOURCE of shards, or of another selection, to `dest`; return its select.json.

    Raises:
        UsageError: if a setting is invalid, or if `dest` contains another selection and `force` is False.
        LuminaError: if no samples remain, if no sample has the score to rank by, or if another process is
            writing a selection to `dest`.
    """
    dest = filesystem.to_text(dest)
    known = filesystem.is_dir(dest)
    filesystem.make_dir(dest)
    try:
        with locked_folder(dest):
            return _select(source, dest, choice, force)
    finally:
        if not known:
            filesystem.remove_dir(dest)  # if it is empty, because nothing was selected


def _select(source: str, dest: str, choice: SelectionSettings, force: bool) -> dict:
    """Write a selection to a locked folder; see `select_samples`."""
    _check_settings(choice)
    conditions = [part for text in choice.where for part in parse_where(text)]
    samples = Samples(source)
    for condition in conditions:
        evaluate(samples.empty, condition)  # raises an error for an invalid condition
    column_by = _rank_column(samples, choice)
    check_dest(dest, source, asdict(choice), force)
    held, steps = _gather(samples, conditions, choice, column_by)
    by = _settle_scores(samples, held, choice)
    if choice.copies:
        groups = held.groups(choice.copies, choice.distance)
        pixels = held.take("pixels") if choice.copies == "near" else None
        held.narrow(keep_best(groups, held.scores, pixels))
        steps.append({"step": f"no {choice.copies} copies", "left": len(held)})
    if choice.per_source is not None:
        held.narrow(best_of_each(held.scores, held.take("source"), choice.per_source))
        steps.append({"step": f"at most {choice.per_source} of a source", "left": len(held)})
    if choice.best is not None:
        steps.append(_best(held, choice.best, by) | ({"instead_of": choice.by} if by != choice.by else {}))
    if not len(held):
        report = ", ".join(map(_report, steps[1:]))
        raise LuminaError(f"none of {len(held.mask)} samples remains: {report}")
    info = {"settings": asdict(choice), "steps": steps}
    return write_selection(dest, samples.folder, source, _chosen(samples, held), info)


def _check_settings(choice: SelectionSettings) -> None:
    if choice.copies not in (None, *DUPLICATES):
        raise UsageError(f"--no-duplicates {choice.copies}: choose from {', '.join(DUPLICATES)}")
    if not 1 <= choice.distance <= MAX_DISTANCE:
        raise UsageError(f"--distance {choice.distance}: must be from 1 to {MAX_DISTANCE} bits")
    if choice.best is not None:
        parse_best(str(choice.best))


def _gather(
    samples: Samples, conditions: list[Comparison], choice: SelectionSettings, by: str | None
) -> tuple[SelectionColumns, list[dict]]:
    """Read the table once; return the columns of the samples that meet the conditions, and the steps."""
    if choice.copies == "near" and "phash" not in samples.empty.column_names:
        raise LuminaError(
            "near duplicates require 'phash'; compute it with `lumina shard score SHARDS --scores phash`"
        )
    names = [name for condition in conditions for name in inputs(condition[0])] + list(
        inputs(by) if by else ()
    )
    names += ["sha256"] if choice.copies else []
    names += ["phash", *inputs("pixels")] if choice.copies == "near" else []
    names += ["source"] if choice.per_source is not None else []
    steps = [{"step": "samples", "left": 0}, *map(_step, conditions)]
    builder = ColumnBuilder(by, choice.copies, choice.per_source is not None)
    for part in samples.parts(names or ["key"]):
        kept = np.ones(len(part), bool)
        steps[0]["left"] += len(part)
        for condition, step in zip(conditions, steps[1:], strict=True):
            true = evaluate(part, condition)
            step["without_value"] += int(np.count_nonzero(as_array(true.is_null())[kept]))
            kept &= as_array(true.fill_null(False))
            step["left"] += int(np.count_nonzero(kept))
        builder.add(part, kept)
    return builder.build(), steps


def _step(condition: Comparison) -> dict:
    name, operator, value = condition
    text = f"{value:g}" if isinstance(value, float) else value
    return {"step": f"{name} {operator} {text}", "left": 0, "without_value": 0}


def _rank_column(samples: Samples, choice: SelectionSettings) -> str | None:
    """Return the column to rank by, or None if only the rows may contain it.

    Raises:
        UsageError: if the column does not exist or is not numeric.
    """
    import pyarrow as pa

    if choice.by == CAPTION and CAPTION not in samples.empty.column_names:
        return None
    kind = column(samples.empty, choice.by).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UsageError(f"--by {choice.by}: not a numeric column")
    return choice.by


def _settle_scores(samples: Samples, held: SelectionColumns, choice: SelectionSettings) -> str:
    """Ensure that there are scores if they are needed; return the name of the column that they are from.

    Scores of captions are read from the rows if a column does not contain them. If "score" is requested and
    no sample has one, it is replaced by the only other score whose higher values are better.

    Raises:
        LuminaError: if no sample has a score, or if several scores could replace "score".
    """
    needed = choice.best is not None or choice.by != SCORE
    if not needed or not len(held) or not np.isnan(held.scores).all():
        return choice.by
    if choice.by == CAPTION:
        held.columns[SCORE] = _caption_scores(samples, held)
    elif choice.by == SCORE:
        found = _alternatives(samples, held)
        if len(found) > 1:
            have = ", ".join(found)
            raise LuminaError(f"no sample has 'score'; available: {have}; choose one with --by")
        if found:
            (name, held.columns[SCORE]) = found.popitem()
            return name
    if np.isnan(held.scores).all():
        have = [name for name in _measured(samples, held) if name != choice.by]
        hint = f"available: {', '.join(have)}" if have else "compute scores with `lumina shard score`"
        raise LuminaError(f"no sample has {choice.by!r} to rank by; {hint}")
    return choice.by


def _alternatives(samples: Samples, held: SelectionColumns) -> dict[str, np.ndarray]:
    """Return the scores that may replace "score" and that samples have: name -> (S,)."""
    found = {}
    for name in BETTER:
        if name in samples.empty.column_names:
            parts = [numbers(part, name) for part in samples.parts([name])]
            values = np.concatenate(parts)[held.mask]
        elif name == CAPTION and any(
            caption_score(row) is not None for row in islice(read_samples(samples.source), FIRST)
        ):
            values = _caption_scores(samples, held)
        else:
            continue
        if not np.isnan(values).all():
            found[name] = values
    return found


def _caption_scores(samples: Samples, held: SelectionColumns) -> np.ndarray:
    """Return the mean score (S,) of the captions of each row, read from the rows; nan if it has none."""
    data = bytearray()
    rows = read_samples(samples.source)
    for row, kept in zip(rows, held.mask, strict=True):
        if kept:
            score = caption_score(row)
            data += np.float64(np.nan if score is None else score).tobytes()
    return np.frombuffer(data, np.float64)


def _measured(samples: Samples, held: SelectionColumns) -> list[str]:
    """Return the names of the scores that at least one sample has."""
    import pyarrow as pa

    names = [each.name for each in samples.empty.schema if pa.types.is_floating(each.type)]
    known = set()
    for part in samples.parts(names):
        known |= {name for name in names if part[name].null_count < len(part)}
    return [name for name in names if name in known]


def _best(held: SelectionColumns, best: float | int, by: str) -> dict:
    """Keep the best samples; return the step. A fraction is that of all S samples, at least one sample."""
    known = ~np.isnan(held.scores)
    count = best if isinstance(best, int) else max(1, round(best * len(known)))
    without = int(np.count_nonzero(~known))
    held.narrow(known)
    held.narrow(best_of(held.scores, count))
    return {"step": f"best by {by}", "left": len(held), "without_value": without}


def _chosen(samples: Samples, held: SelectionColumns) -> Iterator[Any]:
    """Yield the table of the selection in parts.

    Raises:
        LuminaError: if the shards have changed since they were first read.
    """
    import pyarrow as pa

    at, taken = 0, 0
    for part in samples.parts(PLACE):
        kept = held.mask[at : at + len(part)]
        at += len(part)
        if len(kept) < len(part):
            break
        chosen = part.filter(pa.array(kept))
        values = held.scores[taken : taken + len(chosen)]
        taken += len(chosen)
        yield chosen.append_column("value", pa.array(values, mask=np.isnan(values)))
    if at != len(held.mask):
        raise LuminaError(f"{samples.source} changed while it was read; rerun `lumina shard select`")


def _report(step: dict) -> str:
    without = f" ({step['without_value']} have no value)" if step.get("without_value") else ""
    return f"{step['step']} left {step['left']}{without}"

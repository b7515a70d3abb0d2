"""The next stage's samples: conditions, then copies, then a share of the best; no picture is copied.

The order is always the same: what --where asks for, then one of each group of copies (of near ones the one
with the most pixels, of those the best one), then at most so many of each source (the best ones), then the
best of all that are left. Ties go to the sample that comes first, so the same shards and settings select the
same samples.

The table of samples is read in parts, twice: first what decides, of which little is held (columns.py), then
what is written.
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
from lumina_cli.core.shards.selection import check_dest, read_samples, write_selection

COPIES = ("exact", "near")
MOST_BITS = 16  # at which near copies are looked for; more would find half of all pictures alike
# Measured scores of which more is better: "score" may mean these.
BETTER = (CAPTION, "aesthetic", "sharpness")
FIRST = 1000  # rows that are asked whether they have scores of captions


@dataclass(frozen=True)
class SelectionSettings:
    """What to select.

    best        a share up to 1.0, or (an int) a number of samples; None: all
    by          the column that says what is best
    where       conditions, all of which must hold (curation/filter_expr.py)
    copies      None; "exact": one of each picture; "near": one of each group of similar ones
    distance    bits of 64 in which the perceptual hashes of near copies differ at most
    per_source  samples of one source at most
    """

    best: float | int | None = None
    by: str = SCORE
    where: Sequence[str] = ()
    copies: str | None = None
    distance: int = 4
    per_source: int | None = None


def parse_best(text: str) -> float | int:
    """Return what --best says: "1" and more without a dot are samples (int), the rest is a share (float)."""
    try:
        value = float(text)
        if "." not in text and value >= 1:
            return int(text)
        if 0 < value <= 1:
            return value
    except ValueError:
        pass
    raise UsageError(f"--best {text}: a share up to 1.0, or a whole number of samples")


def select_samples(source: str, dest: str, choice: SelectionSettings, force: bool = False) -> dict:
    """Write the selection of a SOURCE of shards (or of another selection) to `dest`; return its select.json.

    UsageError for settings that mean nothing, and where `dest` holds another selection, without `force`;
    LuminaError where nothing is left, or no sample has a score.
    """
    _check(choice)
    conditions = [part for text in choice.where for part in parse_where(text)]
    samples = Samples(source)
    for condition in conditions:
        evaluate(samples.empty, condition)  # or it says what is wrong with it
    column_by = _column_of(samples, choice)
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
        told = ", ".join(map(_report, steps[1:]))
        raise LuminaError(f"nothing is left of {len(held.mask)} samples: {told}")
    info = {"settings": asdict(choice), "steps": steps}
    return write_selection(dest, samples.folder, source, _chosen(samples, held), info)


def _check(choice: SelectionSettings) -> None:
    if choice.copies not in (None, *COPIES):
        raise UsageError(f"--no-duplicates {choice.copies}: choose from {', '.join(COPIES)}")
    if not 1 <= choice.distance <= MOST_BITS:
        raise UsageError(f"--distance {choice.distance}: from 1 to {MOST_BITS} bits")
    if choice.best is not None:
        parse_best(str(choice.best))


def _gather(
    samples: Samples, conditions: list[Comparison], choice: SelectionSettings, by: str | None
) -> tuple[SelectionColumns, list[dict]]:
    """Read the table once: which samples meet the conditions, and what of them is needed to choose."""
    if choice.copies == "near" and "phash" not in samples.empty.column_names:
        raise LuminaError(
            "near copies are found by 'phash'; `lumina shard score SHARDS --scores phash` measures it"
        )
    names = [name for condition in conditions for name in inputs(condition[0])] + list(
        inputs(by) if by else ()
    )
    names += ["sha256"] if choice.copies else []
    names += ["phash", *inputs("pixels")] if choice.copies == "near" else []
    names += ["source"] if choice.per_source is not None else []
    steps = [{"step": "samples", "left": 0}, *map(_step, conditions)]
    keep = ColumnBuilder(by, choice.copies, choice.per_source is not None)
    for part in samples.parts(names or ["key"]):
        kept = np.ones(len(part), bool)
        steps[0]["left"] += len(part)
        for condition, step in zip(conditions, steps[1:], strict=True):
            true = evaluate(part, condition)
            step["without_value"] += int(np.count_nonzero(as_array(true.is_null())[kept]))
            kept &= as_array(true.fill_null(False))
            step["left"] += int(np.count_nonzero(kept))
        keep.add(part, kept)
    return keep.held(), steps


def _step(condition: Comparison) -> dict:
    name, operator, value = condition
    text = f"{value:g}" if isinstance(value, float) else value
    return {"step": f"{name} {operator} {text}", "left": 0, "without_value": 0}


def _column_of(samples: Samples, choice: SelectionSettings) -> str | None:
    """Return the column that says what is best, checked; None where only rows may know."""
    import pyarrow as pa

    if choice.by == CAPTION and CAPTION not in samples.empty.column_names:
        return None
    kind = column(samples.empty, choice.by).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UsageError(f"--by {choice.by}: it is no number")
    return choice.by


def _settle_scores(samples: Samples, held: SelectionColumns, choice: SelectionSettings) -> str:
    """See that there are scores where they are needed, from elsewhere if need be; return whose they are.

    Scores of captions are looked for in the rows where no column has them. Where "score" is asked for and no
    sample has one, it is the only other score that is known to be the better the higher.
    """
    needed = choice.best is not None or choice.by != SCORE
    if not needed or not len(held) or not np.isnan(held.scores).all():
        return choice.by
    if choice.by == CAPTION:
        held.columns[SCORE] = _caption_scores(samples, held)
    elif choice.by == SCORE:
        found = _others(samples, held)
        if len(found) > 1:
            raise LuminaError(f"no sample has a 'score', but {' and '.join(found)}; say which with --by")
        if found:
            (name, held.columns[SCORE]) = found.popitem()
            return name
    if np.isnan(held.scores).all():
        have = [name for name in _measured(samples, held) if name != choice.by]
        hint = f"; they have {', '.join(have)}" if have else "; `lumina shard score` measures some"
        raise LuminaError(f"no sample has a {choice.by!r} to choose by{hint}")
    return choice.by


def _others(samples: Samples, held: SelectionColumns) -> dict[str, np.ndarray]:
    """The scores, better the higher, that samples have: (S,) by name."""
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
    """(S,) the mean of the scores of each row's captions, read from the rows; nan where it has none."""
    data = bytearray()
    rows = read_samples(samples.source)
    for row, kept in zip(rows, held.mask, strict=True):
        if kept:
            score = caption_score(row)
            data += np.float64(np.nan if score is None else score).tobytes()
    return np.frombuffer(data, np.float64)


def _measured(samples: Samples, held: SelectionColumns) -> list[str]:
    """The names of the scores that some sample has."""
    import pyarrow as pa

    names = [each.name for each in samples.empty.schema if pa.types.is_floating(each.type)]
    known = set()
    for part in samples.parts(names):
        known |= {name for name in names if part[name].null_count < len(part)}
    return [name for name in names if name in known]


def _best(held: SelectionColumns, best: float | int, by: str) -> dict:
    """Keep the best; return the step. A share is of all that were left, and at least one."""
    known = ~np.isnan(held.scores)
    count = best if isinstance(best, int) else max(1, round(best * len(known)))
    without = int(np.count_nonzero(~known))
    held.narrow(known)
    held.narrow(best_of(held.scores, count))
    return {"step": f"best by {by}", "left": len(held), "without_value": without}


def _chosen(samples: Samples, held: SelectionColumns) -> Iterator[Any]:
    """Yield the table of a selection in parts."""
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
        raise LuminaError(f"{samples.source} has changed while it was read; select again")


def _report(step: dict) -> str:
    without = f" ({step['without_value']} have no value)" if step.get("without_value") else ""
    return f"{step['step']} left {step['left']}{without}"

"""The next stage's samples: conditions, then copies, then a share of the best; no picture is copied.

The order is always the same: what --where asks for, then one of each group of copies (the best one), then at
most so many of each source (the best ones), then the best of all that are left. Ties go to the sample that
comes first, so the same shards and settings select the same samples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lumina_cli.core.data.duplicates import exact_groups, hashes_of, keep_best, near_groups
from lumina_cli.core.data.table import PLACE, samples_of
from lumina_cli.core.data.where import column, meets, needs_captions, parse_where
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.formats.selection import write_selection

COPIES = ("exact", "near")
MOST_BITS = 16  # at which near copies are looked for; more would find half of all pictures alike


@dataclass(frozen=True)
class Choice:
    """What to select.

    best        a share up to 1, or a number of samples above it; None: all
    by          the column that says what is best
    where       conditions, all of which must hold (data/where.py)
    copies      None; "exact": one of each picture; "near": one of each group of similar ones
    distance    bits of 64 in which the perceptual hashes of near copies differ at most
    per_source  samples of one source at most
    """

    best: float | None = None
    by: str = "score"
    where: Sequence[str] = ()
    copies: str | None = None
    distance: int = 4
    per_source: int | None = None


def select_samples(source: str, dest: str, choice: Choice) -> dict:
    """Write the selection of a SOURCE of shards (or of another selection) to `dest`; return its select.json.

    UsageError for settings that mean nothing; LuminaError where nothing is left, or no sample has a score.
    """
    _check(choice)
    conditions = [part for text in choice.where for part in parse_where(text)]
    shards, table = samples_of(source, captions=needs_captions(conditions))
    steps = [{"step": "samples", "left": len(table)}]
    kept = np.arange(len(table))
    for name, operator, value in conditions:
        true = meets(table, (name, operator, value))
        missing = int(true.take(kept).null_count)
        kept = kept[true.fill_null(False).to_numpy(zero_copy_only=False)[kept]]
        text = f"{value:g}" if isinstance(value, float) else value
        steps.append({"step": f"{name} {operator} {text}", "left": len(kept), "without_value": missing})
    scores = _scores(table, choice, kept)
    if choice.copies:
        groups = _groups(table, choice, kept)
        kept = kept[keep_best(groups, scores[kept])]
        steps.append({"step": f"no {choice.copies} copies", "left": len(kept)})
    if choice.per_source is not None:
        sources = table["source"].combine_chunks().fill_null("").dictionary_encode()
        numbers = sources.indices.to_numpy(zero_copy_only=False)
        kept = _best_of_each(kept, scores, numbers, choice.per_source)
        steps.append({"step": f"at most {choice.per_source} of a source", "left": len(kept)})
    if choice.best is not None:
        without = int(np.isnan(scores[kept]).sum())
        count = round(choice.best * len(kept)) if choice.best <= 1 else int(choice.best)
        kept = _best_of_each(kept[~np.isnan(scores[kept])], scores, np.zeros(len(table), int), count)
        steps.append({"step": f"best by {choice.by}", "left": len(kept), "without_value": without})
    if not len(kept):
        raise LuminaError(f"nothing is left of {len(table)} samples: " + ", ".join(map(_told, steps[1:])))
    return write_selection(
        dest, shards, _chosen(table, kept, scores), {"settings": asdict(choice), "steps": steps}
    )


def _check(choice: Choice) -> None:
    if choice.copies not in (None, *COPIES):
        raise UsageError(f"--no-duplicates {choice.copies}: choose from {', '.join(COPIES)}")
    if not 1 <= choice.distance <= MOST_BITS:
        raise UsageError(f"--distance {choice.distance}: from 1 to {MOST_BITS} bits")
    best = choice.best
    if best is not None and (not best > 0 or (best > 1 and best != int(best))):
        raise UsageError(f"--best {best:g}: a share up to 1, or a whole number of samples")


def _scores(table: Any, choice: Choice, kept: np.ndarray) -> np.ndarray:
    """The column that says what is best, nan where there is none; needed only where --best is."""
    needed = choice.best is not None or choice.by != "score"
    if not needed and choice.by not in table.column_names:
        return np.full(len(table), np.nan)
    values = column(table, choice.by)
    try:
        scores = values.cast("double").to_numpy().astype(np.float64)
    except Exception as error:
        raise UsageError(f"--by {choice.by}: it is no number") from error
    if needed and len(kept) and np.isnan(scores[kept]).all():
        have = [name for name in table.column_names if _is_score(table, name)]
        hint = f"; they have {', '.join(have)}" if have else "; `lumina shard score` measures some"
        raise LuminaError(f"no sample has a {choice.by!r} to choose by{hint}")
    return scores


def _is_score(table: Any, name: str) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(table[name].type) and table[name].null_count < len(table)


def _groups(table: Any, choice: Choice, kept: np.ndarray) -> np.ndarray:
    if choice.copies == "exact":
        return exact_groups(table["sha256"].take(kept))
    if "phash" not in table.column_names:
        raise LuminaError(
            "near copies are found by 'phash'; `lumina shard score SHARDS --scores phash` measures it"
        )
    texts = table["phash"].take(kept)
    known = texts.is_valid().to_numpy()
    groups = np.zeros(len(kept), np.int64)
    groups[known] = near_groups(hashes_of(texts.drop_null()), choice.distance)
    if not known.all():  # told by their bytes then
        others = exact_groups(table["sha256"].take(kept[~known]))
        groups[~known] = groups.max(initial=0) + 1 + others
    return groups


def _best_of_each(kept: np.ndarray, scores: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The `count` best of each number among `kept`, in their order; without scores the first."""
    ranked = np.where(np.isnan(scores[kept]), -np.inf, scores[kept])
    order = np.lexsort((kept, -ranked, numbers[kept]))
    sorted_numbers = numbers[kept][order]
    first = np.searchsorted(sorted_numbers, sorted_numbers, "left")
    return np.sort(kept[order[np.arange(len(order)) - first < count]])


def _chosen(table: Any, kept: np.ndarray, scores: np.ndarray) -> Any:
    import pyarrow as pa

    chosen = table.select(list(PLACE)).take(kept)
    return chosen.append_column("value", pa.array(scores[kept], mask=np.isnan(scores[kept])))


def _told(step: dict) -> str:
    without = f" ({step['without_value']} have no value)" if step.get("without_value") else ""
    return f"{step['step']} left {step['left']}{without}"

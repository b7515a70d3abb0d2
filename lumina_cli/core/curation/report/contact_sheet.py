"""Contact sheet: a page of thumbnails of samples with their captions and scores, to choose thresholds."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lumina_cli.core.curation.filter_expr import column
from lumina_cli.core.curation.sample_table import open_samples
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.html import format_number, pick_evenly, thumbnail, write_page
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.joiner import OverlayJoiner
from lumina_cli.core.shards.overlays.reader import find_overlays, split_source
from lumina_cli.core.shards.reader import read_entry
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import open_row_image

LEVELS = ("short", "medium", "detailed", "tags")  # in the order of the page


def write_preview(source: str, path: str | Path, samples: int = 48, by: str | None = None) -> dict:
    """Write a page of `samples` samples of a SOURCE of shards; return the page and the number of samples.

    They are distributed evenly over the shards or, with `by`, over the values of a score, the highest first.

    Raises:
        UsageError: if the column `by` does not exist.
        LuminaError: if no sample has a value of it, or the shards cannot be read.
    """
    folder, table = open_samples(source)
    chosen, values = _chosen(table, samples, by)
    rows = _rows(source, folder, table, chosen)
    cards = [_card(rows[int(at)], values.get(int(at)), by) for at in chosen]
    kinds = Counter((lang, level) for card in cards for lang, level, _ in card["captions"])
    langs = sorted({lang for lang, _ in kinds}, key=lambda lang: (lang != "en", lang))
    levels = sorted({level for _, level in kinds}, key=lambda level: (*LEVELS, level).index(level))
    subtitle = f"{len(cards)} of {len(table):,} samples of {source}" + (f", by {by}" if by else "")
    page = write_page(
        path,
        "preview.html",
        title="Shard preview",
        subtitle=subtitle,
        cards=cards,
        langs=langs,
        levels=levels,
    )
    return {"page": str(page), "samples": len(cards)}


def _chosen(table: Any, samples: int, by: str | None) -> tuple[np.ndarray, dict[int, float]]:
    """Return the indices of the samples to show, in order, and index -> value of `by`."""
    if by is None:
        return np.array(pick_evenly(range(len(table)), samples), np.int64), {}
    values = column(table, by)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if not known.any():
        raise LuminaError(f"no sample has {by!r}; compute scores with `lumina shard score`")
    numbers = np.flatnonzero(known)
    numbers = numbers[np.argsort(-values.filter(known).to_numpy(), kind="stable")]
    chosen = pick_evenly(numbers.tolist(), samples)
    return np.array(chosen, np.int64), {at: values[at].as_py() for at in chosen}


def _rows(source: str, folder: str, table: Any, chosen: np.ndarray) -> dict[int, dict]:
    """Return index -> row of the chosen samples, with overlays; the index of each shard is read once."""
    joiner = OverlayJoiner(find_overlays(folder, split_source(source)[1]))
    wanted: dict[str, dict[str, int]] = {}
    for at in chosen.tolist():
        wanted.setdefault(table["shard"][at].as_py(), {})[table["key"][at].as_py()] = at
    rows = {}
    for shard, numbers in wanted.items():
        tar = filesystem.join(folder, shard)
        entries = read_index(tar)
        add = joiner.open(tar, entries)
        for entry in entries:
            if entry["key"] in numbers:
                row = add(entry, read_entry(tar, entry))
                rows[numbers[entry["key"]]] = row | {"notes": entry.get("notes") or []}
    return rows


def _card(row: dict, value: float | None, by: str | None) -> dict:
    """Return what the page shows of a sample."""
    card: dict[str, Any] = {"key": str(row["key"]), "picture": None, "problem": None}
    try:
        card["picture"] = thumbnail(open_row_image(row))
    except LuminaError as error:
        card["problem"] = str(error)
    captions = get_captions(row)
    order = sorted(captions, key=lambda lang: (lang != "en", lang))
    card["captions"] = [(lang, level, text) for lang in order for level, text in captions[lang].items()]
    scores = row.get("scores") if isinstance(row.get("scores"), dict) else {}
    facts = {by: value} if by else {}
    facts |= {name: score for name, score in scores.items() if isinstance(score, int | float)}
    size = [f"{row['width']} × {row['height']}"] if row.get("width") and row.get("height") else []
    card["notes"] = row["notes"]
    card["facts"] = size + [f"{name} {format_number(score)}" for name, score in facts.items()]
    return card

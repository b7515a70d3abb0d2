"""Dataset statistics of shards: rejected input, captions, duplicates, sizes, buckets, sources and scores.

The summary is the JSON that `lumina shard stats` writes, and the data of its HTML page. What the indexes do
not contain is read from the rows, in one pass: rejected captions, and tokens that the shards did not count.
The sample table is kept in memory, about 360 bytes per sample.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lumina_cli.core.curation.dedup import exact_groups, hashes_of, near_groups
from lumina_cli.core.curation.report.caption_stats import Count, caption_stats
from lumina_cli.core.curation.report.figures import quantiles, rank_counts
from lumina_cli.core.curation.sample_table import open_samples
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.buckets import crop_sizes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.html import histogram, write_page
from lumina_cli.core.io.jsonl import read_rows
from lumina_cli.core.shards.reader import LEFT_OUT, read_totals
from lumina_cli.core.shards.selection import list_selections

SIZES = (256, 1024)  # image sizes in pixels whose buckets are reported
UNKNOWN = "(not told)"  # the source of samples without one; part of the format of the summary


def compute_stats(
    source: str,
    count: Count | None = None,
    trained: int | None = None,
    mix: dict[str, float] | None = None,
    distance: int = 4,
) -> dict:
    """Return the summary of a SOURCE of shards, with "plots" for the page.

    count     counts the tokens of texts; None: use the counts in the shards or, if there are none, those of
              the bundled tokenizer, which differ from those of other tokenizers, such as Gemma's
    trained   number of images of a training run, to compute epochs
    mix       source -> weight in that run; None: in proportion to its samples
    distance  maximum number of different bits between the hashes of near duplicates

    Raises:
        LuminaError: if the shards contain no samples or cannot be read.
        UsageError: if `mix` contains an unknown source.
    """
    import pyarrow.compute as pc

    folder, table = open_samples(source, captions=True)
    if not len(table):
        raise LuminaError(f"{source} contains no samples")
    summary: dict[str, Any] = {"source": source, "samples": len(table)}
    summary["shards"] = len(table["shard"].unique())
    summary["yield"] = _yield(folder)
    summary["selection"] = _selection(source, summary["samples"], summary["yield"])
    captions, plots = caption_stats(table, source, folder, count)
    summary |= captions | {"duplicates": _duplicates(table, distance)}
    width, height = (table[side].fill_null(0).to_numpy().astype(np.float64) for side in ("width", "height"))
    known = (width > 0) & (height > 0)
    width, height = width[known], height[known]
    summary["pictures"] = {
        "megapixels": quantiles(width * height / 1e6),
        "longer_to_shorter": quantiles(np.maximum(width, height) / np.minimum(width, height)),
    }
    summary["buckets"] = {str(size): _buckets(width, height, size) for size in SIZES}
    summary["notes"] = _count_values(pc.list_flatten(table["notes"]))
    summary["sources"] = _sources(table, trained, mix)
    summary["scores"], score_plots = _scores(table)
    plots |= score_plots | {"megapixels": histogram(width * height / 1e6)}
    return summary | {"plots": {name: plot for name, plot in plots.items() if plot}}


def _scores(table: Any) -> tuple[dict, dict]:
    """Return the quantiles of each score, and their plots."""
    scores, plots = {}, {}
    for name in table.column_names:
        if str(table[name].type) == "double" and table[name].null_count < len(table):
            values = table[name].drop_null().to_numpy()
            scores[name] = {"samples": len(values)} | quantiles(values)
            plots[f"score {name}"] = histogram(values)
    return scores, plots


def headline(summary: dict) -> dict:
    """Return the most important figures of a summary as a row."""
    lost, copies = summary["yield"], summary["duplicates"]
    row = {"samples": summary["samples"], "shards": summary["shards"]}
    row |= {"yield": lost["share"] if lost else None}
    row |= {"selected": summary["selection"]["share"]} if summary["selection"] else {}
    row |= {"without captions": summary["without_captions"]}
    row |= {"different captions": summary["caption_texts"]["different"]}
    row |= {"rejected captions": sum(summary["rejected_captions"].values())}
    row |= {"exact copies": copies["exact"]["copies"]}
    row |= {"near copies": copies["near"]["copies"] if copies["near"] else None}
    return row | {"over 256 tokens": summary["over_256_tokens"], "languages": " ".join(summary["languages"])}


def write_stats_page(path: str | Path, summary: dict) -> Path:
    """Write the HTML page of a summary; return its path."""
    return write_page(path, "stats.html", title="Shard statistics", subtitle=summary["source"], s=summary)


def _yield(folder: str) -> dict | None:
    """Return how much of the input became samples, and why the rest was rejected; None if that is unknown."""
    totals = None if folder.endswith(".tar") else read_totals(folder)
    if not totals:
        return None
    place = filesystem.join(folder, "rejects.jsonl")
    reasons: Counter = Counter()
    before = 0  # rejected before packing
    if filesystem.is_file(place):
        with filesystem.open_file(place) as file:
            for row in read_rows(file):
                reasons[str(row.get("code") or row.get("reason") or "unknown")] += 1
                before += bool(row.get("upstream"))
    left_out = _read_left_out(folder)
    reasons.update({f"not read: {kind}": number for kind, number in left_out.items()})
    lost = sum(reasons.values())
    share = round(totals["samples"] / max(1, totals["samples"] + lost), 5)
    return {
        "input": totals["samples"] + lost,
        "samples": totals["samples"],
        "share": share,
        "rejects": rank_counts(reasons),
        "left_out_before": before,
    }


def _read_left_out(folder: str) -> dict[str, int]:
    """Return {kind: number} of the images that did not become rows when the shards were packed."""
    place = filesystem.join(folder, LEFT_OUT)
    if not filesystem.is_file(place):
        return {}
    with filesystem.open_file(place) as file:
        found = next(read_rows(file), {})
    return {kind: number for kind, number in found.items() if isinstance(number, int)}


def _selection(source: str, samples: int, lost: dict | None) -> dict | None:
    """Return the steps of a selection and of the selections that it is based on; None for shards."""
    found = list_selections(source)
    if not found:
        return None
    steps = [{"selection": folder} | step for folder, info in found for step in info.get("steps", ())]
    return {"share": round(samples / max(1, lost["samples"]), 5) if lost else None, "steps": steps}


def _duplicates(table: Any, distance: int) -> dict:
    """Return the numbers of exact and near duplicates; near ones are None without perceptual hashes."""
    found: dict[str, Any] = {"exact": _count_duplicates(exact_groups(table["sha256"])), "near": None}
    if "phash" in table.column_names and table["phash"].null_count < len(table):
        near = near_groups(hashes_of(table["phash"].drop_null()), distance)
        found["near"] = {"distance": distance} | _count_duplicates(near)
    return found


def _count_duplicates(groups: np.ndarray) -> dict:
    """Return how many images are duplicates of an earlier one, and the size of the largest group."""
    _, sizes = np.unique(groups, return_counts=True)
    copies = int((sizes - 1).sum())
    return {"copies": copies, "share": round(copies / len(groups), 5), "largest_group": int(sizes.max())}


def _buckets(width: np.ndarray, height: np.ndarray, size: int) -> dict:
    """Return the buckets of images at a training size, and the fractions of kept area and enlarged images.

    `width` and `height` are (N,) in pixels.
    """
    crops = sorted(crop_sizes(size), reverse=True)  # like `best_size`, the largest of equally good ones
    if not len(width):
        return {"crops": {}, "kept_area": None, "enlarged": None}
    # Many images have the same size: compute each size once, in blocks that limit memory.
    pairs, inverse = np.unique(np.stack([width, height]), axis=1, return_inverse=True)
    best = np.empty(pairs.shape[1], np.int64)
    kept = np.empty(pairs.shape[1])
    enlarged = np.empty(pairs.shape[1], bool)
    sides = np.array(crops, np.float64)
    for start in range(0, pairs.shape[1], 1 << 14):
        part = slice(start, start + (1 << 14))
        x, y = sides[:, :1] / pairs[0, part], sides[:, 1:] / pairs[1, part]
        fraction = np.minimum(x, y) / np.maximum(x, y)  # of the area that the crop keeps
        best[part] = fraction.argmax(0)
        kept[part] = fraction.max(0)
        enlarged[part] = np.take_along_axis(np.maximum(x, y), best[part][None], 0)[0] > 1
    inverse = inverse.ravel()
    counts = np.bincount(best[inverse], minlength=len(crops))
    named = {f"{w}x{h}": int(n) for (w, h), n in zip(crops, counts, strict=True) if n}
    row = {"crops": dict(sorted(named.items(), key=lambda item: -item[1])), "of": len(crops)}
    row |= {"kept_area": round(float(kept[inverse].mean()), 5)}
    return row | {"enlarged": round(float(enlarged[inverse].mean()), 5)}


def _sources(table: Any, trained: int | None, mix: dict[str, float] | None) -> dict:
    """Return the samples of each source and, for a training run, the epochs over each of them."""
    counts = _count_values(table["source"].fill_null(UNKNOWN))
    if mix and (unknown := sorted(set(mix) - set(counts))):
        raise UsageError(
            f"--mix {unknown[0]}: no sample is from this source; the sources are {', '.join(counts)}"
        )
    weights = {name: mix.get(name, 0.0) if mix else n for name, n in counts.items()}
    whole = sum(weights.values()) or 1
    found = {}
    for name, n in counts.items():
        found[name] = {
            "samples": n,
            "share": round(n / len(table), 5),
            "weight": round(weights[name] / whole, 5),
        }
        found[name]["epochs"] = round(trained * weights[name] / whole / n, 3) if trained else None
    return found


def _count_values(column: Any) -> dict[str, int]:
    """Return value -> number of occurrences in a pyarrow column, the most frequent first."""
    return rank_counts({each["values"].as_py(): each["counts"].as_py() for each in column.value_counts()})

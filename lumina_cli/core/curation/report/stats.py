"""What shards are worth for training, told honestly: what was lost, how long captions are, what comes twice.

One summary, which is the JSON that the command writes, and its page. What indexes do not know is read from
the rows, in one pass: captions that failed their checks, and tokens that the shards did not count. The table
of samples is held in memory, about 360 bytes a sample.
"""

from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lumina_cli.core.curation.dedup import exact_groups, hashes_of, near_groups
from lumina_cli.core.curation.sample_table import open_samples
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.buckets import crop_sizes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.html import histogram, write_page
from lumina_cli.core.io.jsonl import get_captions, read_rows
from lumina_cli.core.shards.overlays.reader import find_overlays, split_source
from lumina_cli.core.shards.reader import iter_index, open_shards, read_totals
from lumina_cli.core.shards.selection import is_selection, list_selections, selected_entries
from lumina_cli.core.shards.writer import count_rejected_captions
from lumina_cli.core.sources.source import read_source

MOST_TOKENS = 256  # that training reads of a caption, its system prompt among them
SIZES = (256, 1024)  # pixels of the stages that bucket fill is told for
QUANTILES = {"p1": 0.01, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
UNKNOWN = "(not told)"  # the source of samples that say none
EMBEDDED = "nano"  # the tokenizer that counts where nothing else does

Count = Callable[[list[str]], list[int]]


def compute_stats(
    source: str,
    count: Count | None = None,
    trained: int | None = None,
    mix: dict[str, float] | None = None,
    distance: int = 4,
) -> dict:
    """Return the summary of a SOURCE of shards, with "plots" for the page.

    `count` counts the tokens of texts; without it those that the shards know are told or, where they know
    none, the embedded tokenizer counts them: other tokenizers, Gemma's too, count otherwise. `trained`
    pictures are those that a training run sees, `mix` the weight of each source in it; by default as they
    are. `distance` is that of near copies.
    """
    import pyarrow.compute as pc

    folder, table = open_samples(source, captions=True)
    if not len(table):
        raise LuminaError(f"{source} holds no samples")
    summary: dict[str, Any] = {"source": source, "samples": len(table)}
    summary["shards"] = len(table["shard"].unique())
    summary["yield"] = _yield(folder)
    summary["selection"] = _selection(source, summary["samples"], summary["yield"])
    captions, plots = _captions(table, source, folder, count)
    summary |= captions | {"duplicates": _duplicates(table, distance)}
    width, height = (table[side].fill_null(0).to_numpy().astype(np.float64) for side in ("width", "height"))
    known = (width > 0) & (height > 0)
    summary["pictures"] = {
        "megapixels": _quantiles(width[known] * height[known] / 1e6),
        "longer_to_shorter": _quantiles(np.maximum(width, height)[known] / np.minimum(width, height)[known]),
    }
    summary["buckets"] = {str(size): _buckets(width[known], height[known], size) for size in SIZES}
    summary["notes"] = _values(pc.list_flatten(table["notes"]))
    summary["sources"] = _sources(table, trained, mix)
    summary["scores"] = {}
    for name in table.column_names:
        if str(table[name].type) == "double" and table[name].null_count < len(table):
            values = table[name].drop_null().to_numpy()
            summary["scores"][name] = {"samples": len(values)} | _quantiles(values)
            plots[f"score {name}"] = histogram(values)
    plots["megapixels"] = histogram(width[known] * height[known] / 1e6)
    return summary | {"plots": {name: plot for name, plot in plots.items() if plot}}


def headline(summary: dict) -> dict:
    """Return the few figures of a summary that matter most."""
    lost, copies = summary["yield"], summary["duplicates"]
    row = {"samples": summary["samples"], "shards": summary["shards"]}
    row |= {"yield": lost["share"] if lost else None}
    row |= {"selected": summary["selection"]["share"]} if summary["selection"] else {}
    row |= {"without captions": summary["without_captions"]}
    row |= {"rejected captions": sum(summary["rejected_captions"].values())}
    row |= {"exact copies": copies["exact"]["copies"]}
    row |= {"near copies": copies["near"]["copies"] if copies["near"] else None}
    return row | {"over 256 tokens": summary["over_256_tokens"], "languages": " ".join(summary["languages"])}


def write_stats_page(path: str | Path, summary: dict) -> Path:
    """Write the page of a summary."""
    return write_page(path, "stats.html", title="Shard statistics", subtitle=summary["source"], s=summary)


def _yield(folder: str) -> dict | None:
    """How much of the input became samples, and why the rest did not; None where the shards do not say."""
    totals = None if folder.endswith(".tar") else read_totals(folder)
    if not totals:
        return None
    place = filesystem.join(folder, "rejects.jsonl")
    reasons: Counter = Counter()
    before = 0  # that were left out before they came to be packed
    if filesystem.is_file(place):
        with filesystem.open_file(place) as file:
            for row in read_rows(file):
                reasons[str(row.get("code") or row.get("reason") or "unknown")] += 1
                before += bool(row.get("upstream"))
    lost = sum(reasons.values())
    share = round(totals["samples"] / max(1, totals["samples"] + lost), 5)
    return {
        "input": totals["samples"] + lost,
        "samples": totals["samples"],
        "share": share,
        "rejects": _ranked(reasons),
        "left_out_before": before,
    }


def _selection(source: str, samples: int, lost: dict | None) -> dict | None:
    """What each step of a selection left, of those that it was selected from, too; None for shards."""
    found = list_selections(source)
    if not found:
        return None
    steps = [{"selection": folder} | step for folder, info in found for step in info.get("steps", ())]
    return {"share": round(samples / max(1, lost["samples"]), 5) if lost else None, "steps": steps}


def _captions(table: Any, source: str, folder: str, count: Count | None) -> tuple[dict, dict]:
    """Lengths by language and level, how many samples have none, and why captions were rejected."""
    import pyarrow.compute as pc

    lists = {name: table[name].combine_chunks() for name in ("languages", "levels", "characters", "tokens")}
    owners = pc.list_parent_indices(lists["characters"]).to_numpy().astype(np.int64)
    langs, levels = (pc.list_flatten(lists[name]).dictionary_encode() for name in ("languages", "levels"))
    lang, level = (codes.indices.to_numpy().astype(np.int64) for codes in (langs, levels))
    characters = pc.list_flatten(lists["characters"]).to_numpy(zero_copy_only=False)
    names = [f"{a}.{b}" for a in langs.dictionary.to_pylist() for b in levels.dictionary.to_pylist()]
    kind = lang * len(levels.dictionary) + level
    kinds = {names[code]: characters[kind == code] for code in np.unique(kind)}
    bare = len(table) - len(np.unique(owners))
    tokens, by = _known_tokens(lists, names, kind), _counted_by(folder)
    if count is None and (not tokens or by == TokenCounter(EMBEDDED).digest):
        count = TokenCounter(EMBEDDED)
    known = tokens and (count is None or by == getattr(count, "digest", ""))
    if known and not find_overlays(folder, split_source(source)[1]):
        rejected = _from_indexes(source)
    else:
        counted, rejected = _from_rows(source, None if known else count)
        tokens = tokens if known else counted
    prompt = 1 + count([full_prompt("", "real")])[0] if count else 0  # 1: the beginning of a sequence
    found, plots = {}, {}
    order = sorted(
        kinds, key=lambda kind: (kind.split(".")[0] != "en", kind.split(".")[0], -np.mean(kinds[kind]))
    )
    for kind in order:
        lengths = kinds[kind]
        found[kind] = {"captions": len(lengths), "share": round(len(lengths) / len(table), 5)}
        found[kind]["characters"] = _quantiles(lengths)
        plots[f"characters {kind}"] = histogram(lengths)
        if kind in tokens:
            numbers = np.array(tokens[kind]) + prompt
            found[kind]["tokens"] = _quantiles(numbers)
            found[kind]["over_256_tokens"] = round(float((numbers > MOST_TOKENS).mean()), 5)
            plots[f"tokens {kind}"] = histogram(numbers, mark=MOST_TOKENS + 1)
    every = np.concatenate([np.array(values) for values in tokens.values()]) + prompt if tokens else None
    over = None if every is None else round(float((every > MOST_TOKENS).mean()), 5)
    summary = {"captions": found, "languages": _owned(owners, lang, langs.dictionary.to_pylist())}
    summary["levels"] = _owned(owners, level, levels.dictionary.to_pylist())
    summary |= {"without_captions": bare, "over_256_tokens": over, "system_prompt_tokens": prompt or None}
    summary |= {"tokenizer": _tokenizer(count, by) if tokens else None, "rejected_captions": rejected}
    return summary, plots


def _counted_by(folder: str) -> str | None:
    """The digest of the tokenizer that the shards were written with."""
    totals = None if folder.endswith(".tar") else read_totals(folder)
    return (totals or {}).get("settings", {}).get("tokenizer")


def _known_tokens(lists: dict, names: list[str], kind: np.ndarray) -> dict[str, np.ndarray]:
    """The tokens that the shards know, by kind of caption; {} where they know none."""
    import pyarrow.compute as pc

    known = pc.list_flatten(lists["tokens"])
    if len(known) != len(kind) or known.null_count == len(known):
        return {}  # counted for some shards only, or for none
    numbers = known.to_numpy(zero_copy_only=False).astype(np.float64)
    found = {names[code]: numbers[(kind == code) & ~np.isnan(numbers)] for code in np.unique(kind)}
    return {name: values for name, values in found.items() if len(values)}


def _owned(owners: np.ndarray, codes: np.ndarray, names: list[str]) -> dict[str, int]:
    """How many samples have a caption of each code."""
    pairs = np.unique(owners * len(names) + codes) if names else codes
    counts = np.bincount(pairs % len(names), minlength=len(names)) if names else []
    return _ranked({name: int(n) for name, n in zip(names, counts, strict=True)})


def _tokenizer(count: Count | None, by: str | None) -> str:
    """What counted the tokens."""
    if count is None:
        return f"that of the shards ({by})"
    digest = getattr(count, "digest", None)
    return EMBEDDED if digest == TokenCounter(EMBEDDED).digest else str(getattr(count, "path", "given"))


def _from_rows(source: str, count: Count | None) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return the tokens of captions by kind, if `count` is there, and how often each check failed."""
    found: dict[str, list[int]] = {}
    rejected: Counter = Counter()
    held: list[tuple[str, str]] = []

    def flush() -> None:
        for (kind, _), number in zip(held, count([text for _, text in held]), strict=True):
            found.setdefault(kind, []).append(number)
        held.clear()

    for row in read_source(source):
        rejected.update(count_rejected_captions(row))
        for lang, levels in get_captions(row, str(row["image"])).items() if count else ():
            held.extend((f"{lang}.{level}", text) for level, text in levels.items())
        if len(held) > 4096:
            flush()
    if held:
        flush()
    return found, _ranked(rejected)


def _from_indexes(source: str) -> dict[str, int]:
    """How often each check of captions failed, as the writer of the shards noted it."""
    rejected: Counter = Counter()
    if is_selection(source):
        lines = chain.from_iterable(chosen for _, _, chosen in selected_entries(source))
    else:
        lines = chain.from_iterable(map(iter_index, open_shards(split_source(source)[0])))
    for line in lines:
        rejected.update(line.get("rejected_captions") or {})
    return _ranked(rejected)


def _duplicates(table: Any, distance: int) -> dict:
    found: dict[str, Any] = {"exact": _copies(exact_groups(table["sha256"])), "near": None}
    if "phash" in table.column_names and table["phash"].null_count < len(table):
        near = near_groups(hashes_of(table["phash"].drop_null()), distance)
        found["near"] = {"distance": distance} | _copies(near)
    return found


def _copies(groups: np.ndarray) -> dict:
    """How many pictures are copies of an earlier one, and how large the largest group is."""
    _, sizes = np.unique(groups, return_counts=True)
    copies = int((sizes - 1).sum())
    return {"copies": copies, "share": round(copies / len(groups), 5), "largest_group": int(sizes.max())}


def _buckets(width: np.ndarray, height: np.ndarray, size: int) -> dict:
    """Where pictures go at a training size: samples by crop, what share of them is kept, or enlarged."""
    crops = sorted(crop_sizes(size), reverse=True)  # of equally good ones `best_size` takes the largest
    if not len(width):
        return {"crops": {}, "kept_area": None, "enlarged": None}
    pairs, inverse = np.unique(np.stack([width, height]), axis=1, return_inverse=True)
    best = np.empty(pairs.shape[1], np.int64)
    kept = np.empty(pairs.shape[1])
    enlarged = np.empty(pairs.shape[1], bool)
    sides = np.array(crops, np.float64)
    for start in range(0, pairs.shape[1], 1 << 14):
        part = slice(start, start + (1 << 14))
        x, y = sides[:, :1] / pairs[0, part], sides[:, 1:] / pairs[1, part]
        share = np.minimum(x, y) / np.maximum(x, y)
        best[part] = share.argmax(0)
        kept[part] = share.max(0)
        enlarged[part] = np.take_along_axis(np.maximum(x, y), best[part][None], 0)[0] > 1
    inverse = inverse.ravel()
    counts = np.bincount(best[inverse], minlength=len(crops))
    named = {f"{w}x{h}": int(n) for (w, h), n in zip(crops, counts, strict=True) if n}
    row = {"crops": dict(sorted(named.items(), key=lambda item: -item[1])), "of": len(crops)}
    row |= {"kept_area": round(float(kept[inverse].mean()), 5)}
    return row | {"enlarged": round(float(enlarged[inverse].mean()), 5)}


def _sources(table: Any, trained: int | None, mix: dict[str, float] | None) -> dict:
    """Samples of each source and, for a training run, how often it sees each of them."""
    counts = _values(table["source"].fill_null(UNKNOWN))
    if mix and (unknown := sorted(set(mix) - set(counts))):
        raise UsageError(f"--mix {unknown[0]}: no sample is from there; the sources are {', '.join(counts)}")
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


def _values(column: Any) -> dict[str, int]:
    """How often each value of a pyarrow column comes, the most frequent first."""
    return _ranked({each["values"].as_py(): each["counts"].as_py() for each in column.value_counts()})


def _ranked(counts: dict[str, int]) -> dict[str, int]:
    """The most frequent first; of equally frequent ones English, for languages, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0] != "en", item[0])))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True))
    whole = {"mean": values.mean(), "least": values.min(), **found, "most": values.max()}
    return {name: round(float(value), 4) for name, value in whole.items()}

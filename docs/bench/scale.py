"""A rehearsal of 110 million samples: their manifest, made up, and what plans on it: seconds and memory.

    python docs/bench/scale.py FOLDER [--rows 110000000]

Each step is a process of its own, so that its peak memory is its own. `generate` writes a manifest.parquet as
`lumina shard` writes it: a million made-up rows at a time. `plan` counts shards and the crops of the stage at
1024 pixels. `select` finds, in one pass over the scores, what the 100, 10 and 1 million best are above, and
writes the best tenth as a selection; never more than a million rows are in memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from lumina_cli.core.formats.manifest import GROUP, NAME, read_manifest, schema
from lumina_cli.core.formats.sizes import best_size

CHUNK, PER_SHARD = 1_000_000, 1000
STAGES = (100 / 110, 10 / 110, 1 / 110)  # shares of the pool: the paper's 100, 10 and 1 of 110 million
HEX = np.array([int.from_bytes(f"{i:02x}".encode(), "little") for i in range(256)], np.uint16)
SIZES = np.array([(1024, 768), (768, 1024), (1024, 1024), (1280, 720), (2048, 1365), (640, 480)], np.int32)
BINS = 1 << 24


def texts(letters: np.ndarray) -> pa.Array:
    """Return strings of one length from their letters (rows, length) uint8."""
    offsets = np.arange(len(letters) + 1, dtype=np.int32) * letters.shape[1]
    return pa.StringArray.from_buffers(len(letters), pa.py_buffer(offsets), pa.py_buffer(letters.tobytes()))


def numbered(numbers: np.ndarray, before: str, digits: int, after: str) -> pa.Array:
    """Return strings such as 000012.tar."""
    places = 10 ** np.arange(digits - 1, -1, -1)
    middle = (numbers[:, None] // places % 10 + ord("0")).astype(np.uint8)
    parts = [np.frombuffer(text.encode(), np.uint8) for text in (before, after)]
    wide = [np.broadcast_to(part, (len(numbers), len(part))) for part in parts]
    return texts(np.concatenate([wide[0], middle, wide[1]], 1))


def named(numbers: np.ndarray, words: list[str]) -> pa.Array:
    """Return the word of each number."""
    return pa.DictionaryArray.from_arrays(numbers.astype(np.int32), words).cast(pa.string())


def lists(values: pa.Array, each: int) -> pa.Array:
    """Return lists of `each` items of `values`."""
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, each, dtype=np.int32), values)


def chunk(start: int, count: int) -> pa.Table:
    """Return made-up rows `start` to `start + count` of a manifest."""
    random = np.random.default_rng(start)
    numbers = np.arange(start, start + count)
    lengths = np.exp(random.normal(11.5, 0.6, count)).astype(np.int64)  # a median of 100 KB
    size = SIZES[random.integers(0, len(SIZES), count)]
    ends = np.cumsum(lengths) % (1 << 33)
    digests = np.ascontiguousarray(HEX[random.integers(0, 256, (count, 32), np.uint8)]).view(np.uint8)
    pair = np.tile([0, 1], count)
    columns = {
        "shard": numbered(numbers // PER_SHARD, "", 6, ".tar"),
        "key": numbered(numbers, "", 9, ""),
        "image": numbered(numbers, "", 9, ".jpg"),
        "offset": ends - lengths,
        "length": lengths,
        "row_offset": ends,
        "row_length": random.integers(900, 1500, count),
        "sha256": texts(digests),
        "width": size[:, 0],
        "height": size[:, 1],
        "notes": pa.array([[]] * count, pa.list_(pa.string())),
        "languages": lists(named(pair, ["en", "zh"]), 2),
        "levels": lists(named(pair, ["detailed", "short"]), 2),
        "characters": lists(pa.array(random.integers(60, 900, 2 * count).astype(np.int32)), 2),
        "tokens": lists(pa.array(random.integers(12, 240, 2 * count).astype(np.int32)), 2),
        "score": random.normal(5, 1, count),
        "source": named(random.integers(0, 3, count), ["a", "b", "c"]),
        "origin": numbered(numbers, "s3://pool/", 9, ".jpg"),
    }
    return pa.table(columns, schema=schema())


def generate(folder: Path, rows: int) -> dict:
    """Write the manifest."""
    with parquet.ParquetWriter(folder / NAME, schema(), compression="zstd") as writer:
        for start in range(0, rows, CHUNK):
            writer.write_table(chunk(start, min(CHUNK, rows - start)), row_group_size=GROUP)
    return {"gb": round((folder / NAME).stat().st_size / 1e9, 2)}


def plan(folder: Path, rows: int) -> dict:
    """Count shards and crops; of each of both how many samples it has."""
    crops: Counter = Counter()
    shards, last = 0, None
    for batch in read_manifest(str(folder), ["shard", "width", "height"]):
        names = batch["shard"].dictionary_encode()
        own = names.dictionary.to_pylist()
        shards += len(own) - (own[0] == last)
        last = own[-1]
        sides = batch["width"].to_numpy() * 65_536 + batch["height"].to_numpy()
        values, counts = np.unique(sides, return_counts=True)
        crops.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    filled: Counter = Counter()
    for side, count in crops.items():
        filled[best_size(side // 65_536, side % 65_536, 1024)] += count
    return {"shards": shards, "crops": len(filled), "smallest_crop": min(filled.values())}


def ordered(scores: np.ndarray) -> np.ndarray:
    """Return whole numbers in the order of floats (float32, as 32 bits)."""
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, ~bits & 0xFFFFFFFF, bits | 0x80000000)


def select(folder: Path, rows: int) -> dict:
    """Find the thresholds of the stages and write the best tenth."""
    counts = np.zeros(BINS, np.int64)
    for batch in read_manifest(str(folder), ["score"]):
        counts += np.bincount(ordered(batch["score"].to_numpy()) >> 8, minlength=BINS)
    above = np.cumsum(counts[::-1])[::-1]  # samples in this bin or a better one
    bins = [int(np.searchsorted(-above, -round(share * rows), "right")) - 1 for share in STAGES]
    written = 0
    names = ["shard", "key", "image", "sha256", "score"]
    with parquet.ParquetWriter(
        folder / "selection.parquet", pa.schema([schema().field(name) for name in names]), compression="zstd"
    ) as writer:
        for batch in read_manifest(str(folder), names):
            best = batch.filter(pa.array(ordered(batch["score"].to_numpy()) >> 8 >= bins[1]))
            writer.write_batch(best)
            written += best.num_rows
    return {"at_least": [int(above[each]) for each in bins], "written": written}


STEPS = {"generate": generate, "plan": plan, "select": select}


def main() -> None:
    """Run the steps, or with --step one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=110_000_000)
    parser.add_argument("--step", choices=STEPS)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    for name in [words.step] if words.step else STEPS:
        if not words.step:
            command = [sys.executable, __file__, str(words.folder), "--rows", str(words.rows), "--step", name]
            subprocess.run(command, check=True)
            continue
        start = time.perf_counter()
        found = STEPS[name](words.folder, words.rows)
        row = {"step": name, "rows": words.rows, "seconds": round(time.perf_counter() - start, 1)}
        row["cpu_seconds"] = round(time.process_time(), 1)
        row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        print(json.dumps(row | found), flush=True)


if __name__ == "__main__":
    main()

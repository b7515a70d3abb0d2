"""A rehearsal of 110 million samples: the real planning and selection code, without the images.

    python docs/bench/scale.py FOLDER [--rows 110000000]

Each step is a process of its own, so that its peak memory is its own.

    plan      `write_shards` over made-up rows: which rows each shard holds, the digests of the rows, the
              journal, the manifest in the order of the shards, shards.json. Two things are stood in for: a
              shard that is written (its tar and its index become empty files of the right sizes), and the
              reading of an index for the manifest (its samples are made up).
    best100, best10, best1
              `select_samples`, as `lumina shard select --best SHARE` runs it: 100/110 of the pool, a tenth of
              that, and a tenth of that
    crops     the crop of the 1024 px stage of each image of the pool
    batches   the training planner: all batches of one epoch over best10

The second half of each made-up sha256 repeats the first, so that a disk of 20 GB is enough: a real manifest
takes 73 bytes a sample, this one less.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from lumina_cli.core.curation.sample_table import Samples
from lumina_cli.core.curation.select import SelectionSettings, select_samples
from lumina_cli.core.dataset.sampler import Sampler
from lumina_cli.core.images.buckets import best_size
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards import manifest, pack
from lumina_cli.core.shards.journal import Journal, digest_rows, encode_images
from lumina_cli.core.shards.manifest import manifest_schema
from lumina_cli.core.shards.tar import index_path
from lumina_cli.core.shards.writer import ShardJob

CHUNK, PER_SHARD, BATCH = 50_000, 1000, 512
TAR, INDEX = 100 << 20, 500 << 10  # bytes of a shard and of its index
SELECTIONS = {"best100": ("pool", 100 / 110), "best10": ("best100", 0.1), "best1": ("best10", 0.1)}
HEX = np.array([int.from_bytes(f"{i:02x}".encode(), "little") for i in range(256)], np.uint16)
SIZES = np.array([(1024, 768), (768, 1024), (1024, 1024), (1280, 720), (2048, 1365), (640, 480)], np.int32)


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
    digests = np.tile(HEX[random.integers(0, 256, (count, 16), np.uint8)], 2).view(np.uint8)
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
    return pa.table(columns, schema=manifest_schema())


def rows_of(count: int) -> Iterator[dict]:
    """Yield synthetic rows of images in an object store."""
    for number in range(count):
        yield {"key": f"{number:09d}", "image": f"s3://pool/{number:09d}.jpg", "source": "abc"[number % 3]}


def no_shard(job: ShardJob) -> dict:
    """Stand in for a shard that is written: empty files of the right sizes, and the note of the journal."""
    tar = Path(job.dest, f"{job.number:06d}.tar")
    for path, size in ((tar, TAR), (Path(index_path(tar)), INDEX)):
        with path.open("wb") as file:
            file.truncate(size)
    note = {
        "shard": job.number,
        "samples": len(job.rows),
        "bytes": TAR,
        "index": ["0" * 64, INDEX],
        "scores": [],
    }
    note["rows"], note["files"] = digest_rows(encode_images(job.rows))
    Journal(job.dest).write(note | {"rejects": []})
    return note | {"rejects": []}


def no_index(rows: int):
    """Replace the samples of a shard, as its index would list them."""
    made = lru_cache(maxsize=1)(lambda start: chunk(start, min(CHUNK, rows - start)))

    def part(job: tuple[str, tuple[str, ...]]) -> pa.Table:
        first = int(filesystem.basename(job[0]).removesuffix(".tar")) * PER_SHARD
        return made(first // CHUNK * CHUNK).slice(first % CHUNK, PER_SHARD)

    return part


def plan(folder: Path, rows: int) -> dict:
    """Plan the shards of the pool."""
    pack.run_job, manifest._index_table = no_shard, no_index(rows)
    shards = sum(1 for _ in pack.write_shards(rows_of(rows), folder / "pool", PER_SHARD))
    size = (folder / "pool" / manifest.NAME).stat().st_size
    return {"shards": shards, "manifest_gb": round(size / 1e9, 2)}


def select(folder: Path, name: str) -> dict:
    """Select one of the stages from the one before."""
    source, share = SELECTIONS[name]
    info = select_samples(str(folder / source), str(folder / name), SelectionSettings(best=share), force=True)
    return {"of": info["steps"][0]["left"], "selected": info["samples"]}


def crops(folder: Path, rows: int) -> dict:
    """Count the samples of each crop."""
    sides: Counter = Counter()
    for part in Samples(str(folder / "pool")).parts(["width", "height"]):
        pairs, counts = np.unique(sides_of(part), axis=0, return_counts=True)
        sides.update(dict(zip(map(tuple, pairs.tolist()), counts.tolist(), strict=True)))
    filled: Counter = Counter()
    for pair, count in sides.items():
        filled[best_size(*pair, 1024)] += count
    return {"crops": len(filled), "smallest_crop": min(filled.values()), "samples": sum(filled.values())}


def sides_of(part: pa.Table) -> np.ndarray:
    """Return (N, 2) widths and heights."""
    return np.stack([part[name].to_numpy() for name in ("width", "height")], 1)


def batches(folder: Path, rows: int) -> dict:
    """Plan one epoch of the stage at 1024 pixels."""
    lengths, shapes, numbers = [], [], {}
    for part in Samples(str(folder / "best10")).parts(["width", "height", "tokens"]):
        lengths.append(part["tokens"].combine_chunks().flatten().to_numpy().reshape(len(part), -1))
        pairs, inverse = np.unique(sides_of(part), axis=0, return_inverse=True)
        boxes = [best_size(*pair, 1024) for pair in pairs.tolist()]
        codes = np.array([numbers.setdefault(box, len(numbers)) for box in boxes])
        shapes.append(codes[inverse.ravel()])
    lengths, shapes = np.concatenate(lengths), np.concatenate(shapes)
    sampler = Sampler(lengths, np.ones(lengths.shape[1]), shapes, BATCH, seed=0)
    exact = sum(sampler[step].exact for step in range(sampler.steps))
    return {"samples": len(shapes), "batches": sampler.steps, "without_padding": exact}


STEPS = {"plan": plan, **dict.fromkeys(SELECTIONS), "crops": crops, "batches": batches}


def run_step(name: str, folder: Path, rows: int) -> dict:
    """Run one step; return its row."""
    start = time.perf_counter()
    found = select(folder, name) if name in SELECTIONS else STEPS[name](folder, rows)
    row = {"step": name, "rows": rows, "seconds": round(time.perf_counter() - start, 1)}
    row["cpu_seconds"] = round(time.process_time(), 1)
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return row | found


def main() -> None:
    """Run the steps, or with --step one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=110_000_000)
    parser.add_argument("--step", choices=STEPS)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    if words.step:
        print(json.dumps(run_step(words.step, words.folder, words.rows)), flush=True)
        return
    for name in STEPS:
        command = [sys.executable, __file__, str(words.folder), "--rows", str(words.rows), "--step", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

"""Speed of writing shards: our writer against webdataset's, on the same rows."""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import read_source

CAPTION = "a picture of number {} that is here to be written, with a caption of a usual length beside it"


def write_images(folder: Path, count: int, size: int, suffix: str = "jpg") -> None:
    """Write `count` images, `size` pixels wide, as detailed as photographs, each with a caption file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (size // 6, size // 8, 3), np.uint8))
        coarse.resize((size, size * 3 // 4), Image.Resampling.BICUBIC).save(folder / f"{number:07d}.{suffix}")
        (folder / f"{number:07d}.txt").write_text(CAPTION.format(number))


def write_with_webdataset(rows: list[dict], dest: Path, per_shard: int) -> None:
    """Write rows with webdataset's ShardWriter: the bytes of the image and the row as JSON."""
    import webdataset

    dest.mkdir(parents=True)
    with webdataset.ShardWriter(
        str(dest / "%06d.tar"), maxcount=per_shard, maxsize=1 << 40, verbose=0
    ) as writer:
        for row in rows:
            rest = {name: value for name, value in row.items() if name != "image"}
            writer.write({"__key__": row["key"], "jpg": image_ref(row["image"]).read(), "json": rest})


def write_with_lumina(check: str) -> Callable[[list[dict], Path, int], None]:
    """Return a function that writes rows with `write_shards`, with this check of the images."""

    def write(rows: list[dict], dest: Path, per_shard: int) -> None:
        for _ in write_shards(rows, dest, per_shard, check=check):
            pass

    return write


def compare_writers(source: str, limit: int, per_shard: int, repeats: int, check: str) -> Iterator[dict]:
    """Yield a row per writer: median seconds, rows and MB per second, and its speed relative to webdataset's.

        source      a SOURCE of files; its first `limit` rows are read before anything is timed
        per_shard   rows per shard
        repeats     timed rounds, after one untimed round
        check       how our writer validates images: quick or full

    Each writer uses one process. They alternate, and "ratio" is the median of the ratios of the rounds.
    """
    rows = list(islice(read_source(source), limit))
    size = sum(len(image_ref(row["image"]).read()) for row in rows)
    writers = {"webdataset": write_with_webdataset, "lumina": write_with_lumina(check)}
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    with tempfile.TemporaryDirectory(prefix="lumina-bench-", dir=".") as folder:
        for _ in range(repeats + 1):
            for name, write in writers.items():
                dest = Path(folder, "shards")
                os.sync()  # pages that the last writer left dirty must not slow down this one
                start = time.perf_counter()
                write(rows, dest, per_shard)
                seconds[name].append(time.perf_counter() - start)
                shutil.rmtree(dest)
    for name in writers:
        turns = seconds[name][1:]
        ratio = median(theirs / ours for theirs, ours in zip(seconds["webdataset"][1:], turns, strict=True))
        row = {
            "writer": name,
            "rows": len(rows),
            "mb": round(size / 1e6, 1),
            "seconds": round(median(turns), 3),
        }
        row |= {"rows_per_second": round(len(rows) / median(turns), 1)}
        yield row | {"mb_per_second": round(size / 1e6 / median(turns), 1), "ratio": round(ratio, 2)}


def peak_mb(children: bool = False) -> float:
    """Return the peak memory in MB of this process, or of the largest of its finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)

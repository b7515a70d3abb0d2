"""How fast shards are written: the same rows by ours and by webdataset's writer, in alternating turns."""

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
    """Write pictures of about the detail of photographs, `size` pixels wide, with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (size // 6, size // 8, 3), np.uint8))
        coarse.resize((size, size * 3 // 4), Image.Resampling.BICUBIC).save(folder / f"{number:07d}.{suffix}")
        (folder / f"{number:07d}.txt").write_text(CAPTION.format(number))


def write_with_webdataset(rows: list[dict], dest: Path, per_shard: int) -> None:
    """Write rows with webdataset's ShardWriter: bytes of the picture and the row as JSON."""
    import webdataset

    dest.mkdir(parents=True)
    with webdataset.ShardWriter(
        str(dest / "%06d.tar"), maxcount=per_shard, maxsize=1 << 40, verbose=0
    ) as writer:
        for row in rows:
            rest = {name: value for name, value in row.items() if name != "image"}
            writer.write({"__key__": row["key"], "jpg": image_ref(row["image"]).read(), "json": rest})


def write_with_lumina(check: str) -> Callable[[list[dict], Path, int], None]:
    """Return what writes rows with `write_shards`, with this check of the pictures."""

    def write(rows: list[dict], dest: Path, per_shard: int) -> None:
        for _ in write_shards(rows, dest, per_shard, check=check):
            pass

    return write


def compare_writers(source: str, limit: int, per_shard: int, repeats: int, check: str) -> Iterator[dict]:
    """Yield a row per writer: seconds (median), rows and MB a second, and its speed relative to webdataset's.

    All use one process and the same rows, which are read before; turns alternate, and the first is not
    counted. The ratio is the median of those of each turn.
    """
    rows = list(islice(read_source(source), limit))
    size = sum(len(image_ref(row["image"]).read()) for row in rows)
    writers = {"webdataset": write_with_webdataset, "lumina": write_with_lumina(check)}
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    with tempfile.TemporaryDirectory(prefix="lumina-bench-", dir=".") as folder:
        for _ in range(repeats + 1):
            for name, write in writers.items():
                dest = Path(folder, "shards")
                os.sync()  # what the last writer left to the system is no part of this turn
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
    """Return the most memory that this process, or the largest of its ended children, has held, in MB."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)

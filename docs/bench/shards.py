"""Memory and time of `lumina shard` for growing numbers of rows: one line per number.

    python docs/bench/shards.py [--rows 25000 50000 100000] [--size 256] [--workers 2]

Rows refer to 1000 images in turn, which limits the disk space. `peak_mb` is the peak of the resident memory,
summed over the command and its processes; shared pages count for each of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lumina_cli.core.bench.writers import CAPTION, write_images

PICTURES = 1000


def resident(process: int) -> int:
    """Bytes that a process and its children hold, by Linux's /proc."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(resident(int(child)) for child in children)


def measure(command: list[str]) -> tuple[float, float]:
    """Return seconds and peak MB of a command."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    done = threading.Event()
    threading.Thread(target=lambda: (process.wait(), done.set())).start()
    while not done.wait(0.05):
        peak = max(peak, resident(process.pid))
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, peak / 1e6


def main() -> None:
    """Create the images and the rows, then pack them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lumina-bench-", dir=".") as folder:
        write_images(Path(folder, "pictures"), PICTURES, words.size)
        for count in words.rows:
            rows = Path(folder, "rows.jsonl")
            with rows.open("w") as file:
                for i in range(count):
                    image = f"pictures/{i % PICTURES:07d}.jpg"
                    captions = {"en": {"short": CAPTION.format(i), "medium": CAPTION.format(i) * 3}}
                    row = {"key": f"{i:08d}", "image": image, "captions": captions}
                    file.write(json.dumps(row) + "\n")
            dest = Path(folder, "shards")
            command = [sys.executable, "-m", "lumina_cli", "shard", str(rows), str(dest), "--force"]
            seconds, peak = measure([*command, "--workers", str(words.workers)])
            size = sum(path.stat().st_size for path in dest.glob("*"))
            row = {"rows": count, "workers": words.workers, "seconds": round(seconds, 1)}
            row |= {
                "rows_per_second": round(count / seconds),
                "mb": round(size / 1e6),
                "peak_mb": round(peak),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

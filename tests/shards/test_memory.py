"""Memory of `lumina shard`: one shard of rows, independent of the number of rows."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A forked process inherits the peak of its parent; /proc has the peak of the program alone.
STATUS = Path("/proc/self/status")
CODE = f"""
import re, sys
from lumina_cli.cli.app import run
code = run(sys.argv[1:])
sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+) kB", open({str(STATUS)!r}).read())[1])
sys.exit(code)
"""


def peak_of(*words: str) -> float:
    """Return the peak memory of a command in MB."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1]) / 1e3


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="the peak of a process is read from Linux's /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    peaks = {}
    for count in (2_000, 24_000):
        rows = tmp_path / f"{count}.jsonl"
        captions = {"en": {"detailed": "a picture of noise, " * 20, "short": "noise"}}
        with rows.open("w") as out:
            for i in range(count):
                out.write(json.dumps({"key": f"{i:06d}", "image": "a.jpg", "captions": captions}) + "\n")
        peaks[count] = peak_of(
            "shard", str(rows), str(tmp_path / f"{count}"), "--workers", "0", "--per-shard", "500"
        )
    assert max(peaks.values()) < 1000
    # 22,000 more rows are 44 MB of images and 11 MB of JSON; only some bytes per shard are kept
    assert peaks[24_000] - peaks[2_000] < 40

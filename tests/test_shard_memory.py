"""What `lumina shard` holds while it writes: a shard's worth of rows, however many there are."""

import io
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image


def peak_of(command: list[str]) -> float:
    """The most MB that a command itself held; the figure of wait4, which is this child's alone."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


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
        command = [sys.executable, "-m", "lumina_cli", "shard", str(rows), str(tmp_path / f"{count}")]
        peaks[count] = peak_of([*command, "--workers", "0", "--per-shard", "500"])
    assert max(peaks.values()) < 1000
    # 22,000 rows more are 44 MB of pictures and 11 MB of JSON; what is kept of them is some bytes a shard
    assert peaks[24_000] - peaks[2_000] < 40

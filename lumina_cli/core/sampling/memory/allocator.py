"""Process memory: returning freed memory to the system, and measuring the peak."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lumina_cli.core.errors import MissingDependency

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h


def trim_allocator() -> None:
    """Make glibc return freed blocks of 1 MiB and more to the system, for the rest of the process.

    By default it raises this threshold up to 32 MiB as blocks are freed, and keeps smaller blocks; that adds
    half of a decoder's activations to the peak.
    """
    _call_glibc("mallopt", MMAP_THRESHOLD, 2**20)


def release_memory(device: torch.device) -> None:
    """Return unused memory to the system, and cached CUDA memory to the driver."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _call_glibc("malloc_trim", 0)


def _call_glibc(name: str, *numbers: int) -> None:
    """Call a function of glibc's allocator; do nothing with another C library."""
    try:
        getattr(ctypes.CDLL(None), name)(*numbers)
    except (AttributeError, OSError, TypeError):
        return


@dataclass
class Peak:
    """Peak memory in bytes during `watch_peak`, relative to its start."""

    bytes: int = 0


@contextmanager
def watch_peak(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the peak memory of a `with` block: of this process, or of a CUDA device.

    The result is valid after the block.

    Raises:
        MissingDependency: if the system does not report peaks (Linux does).
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak resident set size
        before = _status("VmRSS")
    except OSError as error:
        raise MissingDependency(f"peak memory cannot be measured on this system: {error}") from error
    yield peak
    peak.bytes = _status("VmHWM") - before


def _status(field: str) -> int:
    """A size of this process in bytes, from Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

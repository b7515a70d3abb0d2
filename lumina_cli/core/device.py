"""Devices and data types of this machine; torch is imported on use."""

import os
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import MissingDependency, UsageError


def pick_device(name: str | None = None) -> Any:
    """Return the torch.device called "cpu", "cuda", "cuda:1"...; by default CUDA if available, else the CPU.

    Raises:
        UsageError: if the name is unknown.
        MissingDependency: if this machine does not have the device.
    """
    import torch

    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = str(name).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise UsageError(f"unknown device {str(name)!r}; choose from cpu, cuda, cuda:N, mps, auto")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        if count == 0:
            raise MissingDependency(f"device {str(name)!r} needs a CUDA device; this machine has none")
        last = f" to cuda:{count - 1}" if count > 1 else ""
        raise MissingDependency(f"device {str(name)!r} does not exist; this machine has cuda:0{last}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MissingDependency(f"device {str(name)!r} needs an Apple GPU; this machine has none")
    return torch.device(name)


def compute_dtype(device: Any) -> Any:
    """Return torch.bfloat16 if the device multiplies it in hardware, else torch.float32."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16", "bf16"} & cpu_features():
        return torch.bfloat16
    return torch.float32


@cache
def cpu_features() -> frozenset[str]:
    """Return the processor's feature flags as Linux lists them; empty on other systems."""
    return frozenset(_cpuinfo("flags", "Features").split())


def _cpuinfo(*names: str) -> str:
    """Return the first value of /proc/cpuinfo with one of these names, or an empty string."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def cpu_count() -> int:
    """Return the number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile uses on a CPU, or None."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def memory_gib() -> tuple[float, float] | None:
    """Return (total, available) memory in GiB, or None if the system does not report it."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    found = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    total, free = (int(found[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return total, free


def describe_machine() -> dict:
    """Return the facts that measurements depend on: versions, processor, memory, disk, CUDA; sizes in GiB."""
    import torch

    memory = memory_gib()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpuinfo("model name") or platform.processor() or "unknown",
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_cpu": compute_dtype("cpu") == torch.bfloat16,
        "memory_gib": round(memory[0], 1) if memory else None,
        "memory_free_gib": round(memory[1], 1) if memory else None,
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "cuda": [_describe_cuda(index) for index in range(torch.cuda.device_count())],
    }


def _describe_cuda(index: int) -> dict:
    import torch

    device = torch.cuda.get_device_properties(index)
    return {
        "name": device.name,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "capability": f"{device.major}.{device.minor}",
    }

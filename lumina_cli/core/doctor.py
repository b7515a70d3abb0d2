"""Checks of this machine, by running each component rather than comparing version numbers.

One row per component: "part", "ok" (None: optional and not installed), "found", and the remedy under "fix".
"""

import errno
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lumina_cli.core.device import compute_dtype, describe_machine, find_compiler, pick_device
from lumina_cli.core.errors import LuminaError

HUB_MODEL = "Alpha-VLLM/Lumina-Image-2.0"
HUB_SIZE = 20  # GB: transformer and text encoder of 10.4 GB each in float32, and a small VAE
REQUIRED = (
    "torch",
    "transformers",
    "diffusers",
    "datasets",
    "webdataset",
    "safetensors",
    "pydantic",
    "pillow",
)
REQUIRED += ("imagehash", "py3langid")
IMPORTED_AS = {"pillow": "PIL"}
MIN_MEMORY, MIN_DISK = 2.0, 1.0  # GiB; enough to train and shard nano

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # writes refused by the system

Finding = tuple[bool | None, str, str]  # ok, found, fix


def run_checks(cached: Callable[[str], Path | None]) -> Iterator[dict]:
    """Yield one row per component, the required ones first; a check that fails yields a row too.

    cached   returns the folder of a hub model if all of it is on this machine: `models.hub.find_cached`
    """
    yield _run_check("python", _check_python)
    for name in REQUIRED:
        yield _run_check(name, lambda name=name: _check_package(name))
    for name, check in CHECKS.items():
        yield _run_check(name, check)
    yield _run_check("lumina-image-2", lambda: _check_hub_model(cached))


def _run_check(part: str, check: Callable[[], Finding]) -> dict:
    try:
        ok, found, fix = check()
    except Exception as error:  # a broken installation may raise anything; that is the finding
        text = " ".join(str(error).split())
        ok, found, fix = False, f"{type(error).__name__}: {text[:200]}", f"reinstall or repair {part}"
        if isinstance(error, OSError) and error.errno in REFUSED:  # not the fault of the component
            place = f" {error.filename}" if error.filename else ""
            fix = f"make{place or ' the folder'} writable, or free space on its disk, and check again"
    return {"part": part, "ok": ok, "found": found, "fix": fix or None}


def _check_python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return (
        sys.version_info >= (3, 11),
        text,
        "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer",
    )


def _check_package(name: str) -> Finding:
    import_module(IMPORTED_AS.get(name, name))
    return True, version(name), ""


def _check_processor() -> Finding:
    import torch

    machine = describe_machine()
    found = f"{machine['cpu']}, {machine['cores']} cores"
    if compute_dtype("cpu") != torch.bfloat16:
        return True, f"{found}, no bf16 instructions: float32 is used", ""
    ones = torch.ones(64, 64, dtype=torch.bfloat16)
    return bool((ones @ ones == 64).all()), f"{found}, bf16", ""


def _check_memory() -> Finding:
    machine = describe_machine()
    total, free = machine["memory_gib"], machine["memory_free_gib"]
    if total is None:
        return None, "unknown", ""
    enough = free >= MIN_MEMORY
    return (
        enough,
        f"{free:g} of {total:g} GiB free",
        "" if enough else f"close other programs: {MIN_MEMORY:g} GiB are needed",
    )


def _check_disk() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=".") as file:
            file.write(b"lumina")
            file.flush()
    except OSError as error:
        fix = "change to a folder that you can write to, or name one with --out and out="
        return False, f"this folder is not writable: {error.strerror}", fix
    free = shutil.disk_usage(".").free / 2**30
    return (
        free >= MIN_DISK,
        f"this folder is writable, {free:.1f} GiB free",
        "" if free >= MIN_DISK else "free some space",
    )


def _check_cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return (
            None,
            "no CUDA device; the CPU is used",
            "" if torch.version.cuda else "install a torch build with CUDA to use a GPU",
        )
    ones = torch.ones(64, 64, device=pick_device("cuda"))
    names = ", ".join(f"{d['name']} {d['memory_gib']:g} GiB" for d in describe_machine()["cuda"])
    return (
        bool((ones @ ones == 64).all()),
        f"{names}, {str(compute_dtype('cuda')).removeprefix('torch.')}",
        "",
    )


def _check_cuda_package(name: str, extra: str, attempt: Callable[[], None]) -> Finding:
    """Check an optional package by calling `attempt`; every package but ray needs a CUDA device for it."""
    import torch

    try:
        found = version(name)
    except PackageNotFoundError:
        return (
            None,
            "not installed",
            f"pip install 'lumina-cli[{extra}]'" if extra else "comes with torch for CUDA",
        )
    if not torch.cuda.is_available() and name != "ray":
        return None, f"{found}, not tested: no CUDA device", ""
    attempt()
    return True, f"{found}, tested", ""


def _check_extra(name: str, extra: str, *others: str) -> Finding:
    """Check a package of an extra by importing it and the other modules that the extra installs."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return None, "not installed", f"pip install 'lumina-cli[{extra}]'"
    for module in (name, *others):
        import_module(module)
    return True, found, ""


def _try_triton() -> None:
    import torch

    halved = torch.compile(lambda x: x.sin() / 2)
    halved(torch.ones(1024, device="cuda"))


def _try_flash() -> None:
    import torch
    from flash_attn import flash_attn_func

    q = torch.ones(1, 16, 2, 64, device="cuda", dtype=torch.float16)
    flash_attn_func(q, q, q)


def _try_vllm() -> None:
    from vllm import LLM, SamplingParams  # noqa: F401


def _try_ray() -> None:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
    try:
        ray.get(ray.put(1))
    finally:
        ray.shutdown()


def _check_compiler() -> Finding:
    found = find_compiler()
    return (True, found, "") if found else (None, "none", "install g++ to train with compile=true")


def _check_nano() -> Finding:
    from lumina_cli.core.registry import MODELS

    try:
        return True, str(MODELS.load("nano")()), ""
    except LuminaError as error:
        return False, str(error), "reinstall lumina-cli"


def _check_hub_model(cached: Callable[[str], Path | None]) -> Finding:
    from huggingface_hub import try_to_load_from_cache

    if folder := cached(HUB_MODEL):
        return True, str(folder), ""
    incomplete = isinstance(try_to_load_from_cache(HUB_MODEL, "model_index.json"), str)
    found = "incomplete in the hub cache" if incomplete else "not in the hub cache"
    return None, found, f"hf download {HUB_MODEL} (about {HUB_SIZE} GB)"


CHECKS: dict[str, Callable[[], Finding]] = {
    "processor": _check_processor,
    "memory": _check_memory,
    "disk": _check_disk,
    "cuda": _check_cuda,
    "compiler": _check_compiler,
    "triton": lambda: _check_cuda_package("triton", "", _try_triton),
    "flash-attn": lambda: _check_cuda_package("flash-attn", "flash", _try_flash),
    "vllm": lambda: _check_cuda_package("vllm", "vllm", _try_vllm),
    "ray": lambda: _check_cuda_package("ray", "ray", _try_ray),
    "openai": lambda: _check_extra("openai", "openai"),
    "rapidocr": lambda: _check_extra("rapidocr", "ocr", "onnxruntime"),
    "s3fs": lambda: _check_extra("s3fs", "s3"),
    "gcsfs": lambda: _check_extra("gcsfs", "gcs"),
    "nano": _check_nano,
}

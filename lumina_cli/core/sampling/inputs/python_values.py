"""Values from Python calls: checked as the command line is, and converted to plain numbers and text."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from lumina_cli.core.device import compute_dtype
from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.sizes import Size
from lumina_cli.core.registry import DIFFUSERS_NAMES
from lumina_cli.core.sampling.request import Job, SamplingRequest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_BYTES = 2**30  # smaller weight files compute in float32, in which the batch does not change an image
_CAN_BE_OFF = ("renorm", "push_limit", "cache")  # settings of a plan for which None is a value


@dataclass(frozen=True)
class PythonCall:
    """A validated call of a pipeline: settings of all images, and the images."""

    request: SamplingRequest
    jobs: list[Job]


def read_call(
    prompt: Any,
    seed: Any = None,
    count: Any = None,
    size: Any = None,
    system: Any = None,
    negative: Any = None,
    preset: str | Path | None = None,
    negative_system: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PythonCall:
    """Validate the arguments of `Pipeline.__call__`; None stands for a default.

    Raises:
        UsageError: if an argument has the wrong type or value; before any work.
    """
    prompts = _read_prompts(prompt)
    negatives = _read_negatives(negative, len(prompts))
    if system is not None:
        _check_text("system", system)
    if preset is not None and not isinstance(preset, str | Path):
        raise UsageError(f"preset must be a name or a path, not {_show(preset)}")
    if negative_system is not None and not isinstance(negative_system, bool):
        raise UsageError(f"negative_system must be True or False, not {_show(negative_system)}")
    seeds = _read_seeds(seed)
    request = SamplingRequest(
        seed=seeds if len(seeds) > 1 else seeds[0],
        count=_to_integer("count", 1 if count is None else count),
        size=_to_size(size),
        plan=_to_settings(settings or {}),
        preset=preset,
        system=system,
        negative_system=negative_system,
    )
    request.check()
    images = [(own, number) for own in seeds for number in range(request.count)]
    pairs = zip(prompts, negatives, strict=True)
    return PythonCall(request, [Job(text, *image, other) for text, other in pairs for image in images])


def check_load(*, lora: Any, note: Any, compile: Any, **texts: Any) -> None:
    """Validate the arguments of `lumina_cli.load`; None stands for a default.

    texts   arguments that are texts; "model" and "frozen" may also be paths

    Raises:
        UsageError: if an argument has the wrong type.
    """
    for name, value in texts.items():
        kinds, wanted = (str, "text")
        if name in ("model", "frozen"):
            kinds, wanted = str | Path, "text or a path"
        elif name == "device":
            kinds, wanted = str | torch.device, "text or a torch.device"
        if value is not None and not isinstance(value, kinds):
            raise UsageError(f"{name} must be {wanted}, not {_show(value)}")
        if value is not None and not str(value).strip():
            raise UsageError(f"{name} is empty; omit it for the default")
    several = isinstance(lora, list | tuple)
    for path in lora if several else (lora,):
        if not isinstance(path, str | Path) and (several or lora is not None):
            raise UsageError(f"lora must be a path, or a list of paths, not {_show(path)}")
    if not isinstance(compile, bool):
        raise UsageError(f"compile must be True or False, not {_show(compile)}")
    if note is not None and not callable(note):
        raise UsageError(f"note must be a function of one text, not {_show(note)}")


def parse_dtype(dtype: Any) -> torch.dtype | None:
    """Return a torch.dtype given as such or by name, such as "float16"; None or "auto" for the default.

    Raises:
        UsageError: if it is not a floating-point type that networks compute in.
    """
    if dtype is None or dtype == "auto":
        return None
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    found = _DTYPES.get(name) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise UsageError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
    return found


def default_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """Return the dtype that the transformer of a model folder computes in by default; see `load_pipeline`."""
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    return torch.float32 if size < SMALL_BYTES else compute_dtype(device)


def _read_prompts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        prompts = [prompt]
    elif isinstance(prompt, set | frozenset):
        raise UsageError("prompt is a set, which has no fixed order; give a list, such as sorted(prompts)")
    elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray | Mapping):
        prompts = list(prompt)
    else:
        raise UsageError(f"prompt must be text or a list of texts, not {_show(prompt)}")
    if not prompts:
        raise UsageError("no prompts in the list")
    for number, text in enumerate(prompts, start=1):
        _check_text("prompt" if isinstance(prompt, str) else f"prompt {number}", text)
    return [str(text) for text in prompts]


def _read_negatives(negative: Any, count: int) -> list[str]:
    """Return a negative prompt for each of `count` prompts; one text is used for all of them."""
    if negative is None or isinstance(negative, str):
        _check_text("negative", negative or "")
        return [negative or ""] * count
    if not isinstance(negative, list | tuple):
        raise UsageError(f"negative must be text or a list of texts, not {_show(negative)}")
    if len(negative) != count:
        raise UsageError(f"negative has {len(negative)} texts for {count} prompts; give as many, or one text")
    for number, text in enumerate(negative, start=1):
        _check_text(f"negative {number}", text or "")
    return [text or "" for text in negative]


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{name} must be text, not {_show(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid UTF-8 text: {text[:40]!a}") from error


def _read_seeds(seed: Any) -> tuple[int, ...]:
    """Return one or several seeds, each once; None is 0."""
    if not isinstance(seed, list | tuple | range) and getattr(seed, "ndim", 0) != 1:
        return (_to_integer("seed", 0 if seed is None else seed),)
    seeds = tuple(dict.fromkeys(_to_integer("each seed", one) for one in seed))
    if not seeds:
        raise UsageError("seed is an empty list; give at least one integer")
    return seeds


def _to_integer(name: str, value: Any) -> int:
    """Return an integer of any type, numpy's and torch's included."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UsageError(f"{name} must be an integer, not {_show(value)}")


def _to_size(size: Any) -> Size:
    if size is None or isinstance(size, str):
        return size
    if isinstance(size, Iterable) and not isinstance(size, bytes | Mapping):
        return tuple(_to_integer("each side of size", side) for side in size)  # type: ignore[return-value]
    return _to_integer("size", size)


def _to_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a plan with plain numbers; those that are None have their defaults."""
    found = {}
    for name, value in settings.items():
        if name in DIFFUSERS_NAMES:
            raise UsageError(f"{name} is an argument of diffusers; use {DIFFUSERS_NAMES[name]} here")
        if value is None and name not in _CAN_BE_OFF:
            continue
        if name in ("steps", "calls"):
            value = _to_integer(name, value)
        elif isinstance(value, Real) and not isinstance(value, bool | int):
            value = float(value)
        elif hasattr(value, "item") and not isinstance(value, str):  # an integer or a scalar array
            try:
                value = value.item()
            except (TypeError, ValueError, RuntimeError) as error:  # numpy and torch differ
                raise UsageError(f"{name} must be a single value, not {_show(value)}") from error
        found[name] = value
    return found


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"

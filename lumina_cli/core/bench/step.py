"""One network call against diffusers' network: time, error against float32, fraction of the matmul limit.

B batch, M text tokens, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.bench.ceiling import ceiling_seconds, seconds
from lumina_cli.core.bench.kernels import PERCENTILES
from lumina_cli.core.bench.networks import (
    PIXELS,
    NetworkInputs,
    Step,
    diffusers_step,
    exact_velocities,
    load_network,
    make_call,
    our_step,
    random_network,
)
from lumina_cli.core.errors import UsageError
from lumina_cli.core.nextdit import NextDiTConfig
from lumina_cli.core.nextdit.packed.quantize import check_quantizer, quantize
from lumina_cli.core.registry import did_you_mean

ERROR_SIZE = 256  # up to this size, float32 takes seconds instead of minutes for the largest model
DTYPES = ("float32", "bfloat16")
SIDES = {"diffusers": diffusers_step}


def time_step(
    model: str = "lumina-image-2",
    size: int = 1024,
    *,
    random_weights: bool = True,
    guided: bool = False,
    against: Sequence[str] = ("diffusers",),
    quantized: str | None = None,
    tokens: int = 128,
    repeats: int = 3,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    error_size: int | None = None,
) -> Iterator[dict]:
    """Time one network call on the CPU; yield a row for our network and one for each of `against`.

        model            with `random_weights` the name of a size, otherwise a model's name or folder
        size             width and height in pixels
        guided           a guided step: one call with both branches and texts encoded before, as in
                         `draw_latents`; for diffusers, two calls
        quantized        quantization of our network
        tokens           text tokens of the caption
        repeats          timed rounds; each calls every network once, after one untimed round
        error_size       size in pixels for the error; None: `size`, at most 256
        yields           seconds at three percentiles; "ratio", the median over rounds of their time over
                         ours; "error", the relative error against float32; "share", the time of the matmuls
                         alone, unquantized and in `dtype`, as a fraction of the median time

    Raises:
        UsageError: if a name is unknown or a number is out of range.
    """
    sides = _check(model, random_weights, against, quantized, size, repeats, tokens)
    ours = random_network(model, dtype, seed) if random_weights else load_network(model, dtype)
    dtype = ours.dtype
    size_of_error = error_size or min(size, ERROR_SIZE)
    call, small = (
        make_call(ours.config, side, tokens, guided, seed, dtype) for side in (size, size_of_error)
    )
    exact = exact_velocities(ours, small)
    others = {name: SIDES[name](ours) for name in sides}
    limit = _Limit(*ceiling_seconds(ours.config, call, dtype))
    if quantized:
        quantize(ours, quantized)
    runs = {"lumina": our_step(ours, guided), **others}
    about = {"op": "step", "model": model, "size": size, "guided": guided, "tokens": tokens}
    about |= {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        errors = {name: _distance(run(small), exact) for name, run in runs.items()}
        times = alternate({name: bind(run, call) for name, run in runs.items()}, repeats)
    for name in times:
        row = {**about, "side": name, "quantize": quantized if name == "lumina" else None}
        row |= _time_columns(times, name)
        row |= {"error": errors[name], "error_size": size_of_error}
        yield row | limit.columns(times[name]) | {"repeats": repeats}


@dataclass(frozen=True)
class _Limit:
    """The time of the matmuls alone, and their operations."""

    seconds: float
    tera: float

    def columns(self, times: Sequence[float]) -> dict:
        """The columns of a row that compare with the limit."""
        return {"share": self.seconds / median(times), "tflop": self.tera, "ceiling_s": self.seconds}


def _time_columns(times: dict[str, list[float]], name: str) -> dict:
    """The seconds of a side, and their ratio to ours round by round, at three percentiles."""
    marks = np.percentile(times[name], PERCENTILES)
    columns = {f"s_p{p}": float(mark) for p, mark in zip(PERCENTILES, marks, strict=True)}
    ratios = [other / one for other, one in zip(times[name], times["lumina"], strict=True)]
    marks = np.percentile(ratios, PERCENTILES)
    return columns | {"ratio": float(marks[1]), "ratio_p20": float(marks[0]), "ratio_p80": float(marks[2])}


def _check(
    model: str, random: bool, against: Sequence[str], kind: str | None, size: int, repeats: int, tokens: int
) -> list[str]:
    """Validate the arguments before anything takes time; return each side once.

    Raises:
        UsageError: if a name is unknown or a number is out of range.
    """
    if kind is not None:
        check_quantizer(kind)
    for name in against:
        if name not in SIDES:
            raise UsageError(f"unknown implementation {name!r} for --against; choose from {', '.join(SIDES)}")
    if random:
        config = NextDiTConfig.named(model)
        step, most = PIXELS * config.patch_size, config.axes_len[1] * PIXELS * config.patch_size
        if size % step or not 0 < size <= most:
            raise UsageError(f"size {size} is not a multiple of {step} up to {most}")
        if not 0 < tokens <= config.max_text_tokens:
            raise UsageError(f"tokens must be from 1 to {config.max_text_tokens}, not {tokens}")
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, not {repeats}")
    return list(dict.fromkeys(against))


def read_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype `name`, one of DTYPES; None for None.

    Raises:
        UsageError: if the name is unknown.
    """
    if name is not None and name not in DTYPES:
        raise UsageError(
            f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}; choose from {', '.join(DTYPES)}"
        )
    return getattr(torch, name) if name else None


def bind(run: Step, call: NetworkInputs) -> Callable[[], list[Tensor]]:
    """Return `run` with its argument bound."""
    return lambda: run(call)


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """The relative error of all velocities together."""
    one, two = (torch.cat([part.flatten() for part in parts]).double() for parts in (found, exact))
    return float((one - two).norm() / two.norm())


def alternate(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of `repeats` calls of each, one of each per round, after one untimed round.

    Alternating spreads slow phases of the machine over all sides.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            taken = seconds(run)
            if turn:
                times[name].append(taken)
    return times

"""Time the implementations of an operation against each other, with the error of each beside its speed."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels import Inputs, Op
from lumina_cli.core.registry import did_you_mean

PERCENTILES = (20, 50, 80)
WARM_UP = 3  # the first calls load kernels and fill caches


@torch.inference_mode()
def compare(op: Op, inputs: Inputs, repeats: int = 50, only: Sequence[str] = ()) -> Iterator[dict]:
    """Yield a row per implementation: relative error against float64, and milliseconds at three percentiles.

    The implementations take turns within one loop, so a machine that slows down slows them all. The row of
    one that cannot run on these inputs has only the reason, as `unavailable`. With `only`, rows of those
    names: one that cannot run raises MissingPart, one that does not exist UsageError.
    """
    reasons = choose(op, inputs, only)
    able = [name for name, reason in reasons.items() if reason is None]
    timed = [*able, *({op.baseline} - set(able))] if _runs(op, op.baseline, inputs) else able
    errors = _errors(op, inputs, able)
    times = _take_turns({name: op.implementations[name].run for name in timed}, inputs, repeats)
    for name, reason in reasons.items():
        row = {"op": op.name, "backend": name}
        if reason is not None:
            yield {**row, "unavailable": reason}
            continue
        marks = np.percentile(times[name], PERCENTILES)
        row |= {
            "error": errors[name],
            **{f"ms_p{p}": float(ms) for p, ms in zip(PERCENTILES, marks, strict=True)},
        }
        if op.baseline in times:
            row[f"times_{op.baseline}"] = float(marks[1] / np.median(times[op.baseline]))
        yield row


def choose(op: Op, inputs: Inputs, only: Sequence[str] = ()) -> dict[str, str | None]:
    """Return {name: why it cannot run on these inputs, or None}, of all implementations or `only` some."""
    for name in only:
        if name not in op.implementations:
            hint = did_you_mean(name, op.implementations) or f"; choose from {', '.join(op.implementations)}"
            raise UsageError(f"unknown {op.name} backend {name!r}{hint}")
    reasons = {name: op.implementations[name].missing(*inputs) for name in only or op.implementations}
    for reason in reasons.values():
        if only and reason is not None:
            raise MissingDependency(f"--backend {reason}")
    return reasons


def _runs(op: Op, name: str, inputs: Inputs) -> bool:
    return op.implementations[name].missing(*inputs) is None


def _errors(op: Op, inputs: Inputs, names: Sequence[str]) -> dict[str, float]:
    """Return |out - reference| / |reference| for each name."""
    exact = op.reference(*inputs)
    scale = torch.linalg.vector_norm(exact).clamp(min=torch.finfo(exact.dtype).tiny)
    return {
        name: float(torch.linalg.vector_norm(op.implementations[name].run(*inputs) - exact) / scale)
        for name in names
    }


def _take_turns(
    runs: dict[str, Callable[..., Tensor]], inputs: Inputs, repeats: int
) -> dict[str, list[float]]:
    """Return `repeats` times in milliseconds for each of `runs`, one call of each in turn."""
    cuda = inputs[0].device.type == "cuda"
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + repeats):
        for name, run in runs.items():
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(*inputs)
            if cuda:
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) * 1000)
    return times

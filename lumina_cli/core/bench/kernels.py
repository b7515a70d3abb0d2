"""Compare implementations of an operation: time and error."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels import Inputs, Op
from lumina_cli.core.registry import did_you_mean

PERCENTILES = (20, 50, 80)
WARM_UP = 3  # untimed rounds: the first calls load kernels and fill caches


@torch.inference_mode()
def compare(op: Op, inputs: Inputs, repeats: int = 50, only: Sequence[str] = ()) -> Iterator[dict]:
    """Yield a row per implementation: relative error against float64, and milliseconds at three percentiles.

        repeats   timed calls of each implementation; they alternate, so that a slow phase of the machine
                  affects all of them
        only      names of implementations; empty: all. Without names, an implementation that cannot run on
                  these inputs yields a row with the reason as "unavailable"

    Raises:
        UsageError: if a name in `only` is unknown.
        MissingDependency: if an implementation in `only` cannot run.
    """
    reasons = choose(op, inputs, only)
    able = [name for name, reason in reasons.items() if reason is None]
    timed = [*able, *({op.baseline} - set(able))] if _runs(op, op.baseline, inputs) else able
    errors = _errors(op, inputs, able)
    times = _alternate({name: op.implementations[name].run for name in timed}, inputs, repeats)
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
    """Return for each name the reason why it cannot run on these inputs, or None.

    Raises:
        UsageError: if a name in `only` is unknown.
        MissingDependency: if an implementation in `only` cannot run.
    """
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
    """|output - reference| / |reference| of each name."""
    exact = op.reference(*inputs)
    scale = torch.linalg.vector_norm(exact).clamp(min=torch.finfo(exact.dtype).tiny)
    return {
        name: float(torch.linalg.vector_norm(op.implementations[name].run(*inputs) - exact) / scale)
        for name in names
    }


def _alternate(
    runs: dict[str, Callable[..., Tensor]], inputs: Inputs, repeats: int
) -> dict[str, list[float]]:
    """`repeats` times in milliseconds of each of `runs`, one call of each per round."""
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

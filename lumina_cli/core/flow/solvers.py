"""Solvers of dx/dt = velocity(x, t): generators that yield the state at the end of every step.

A solver takes `velocity(x, t) -> like x`, the state at times[0] and rising times; it keeps the state's dtype.
A plan spaces the times evenly from 0 to 1, then shifts them; a solver that wants others has its own `grid`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from lumina_cli.core.flow.path import data_from, shift_time

Velocity = Callable[[Tensor, float], Tensor]

FIRST_DPM_TIME = 0.001  # before the shift; at t = 0 the solver's half log-odds would be infinite


def even_grid(steps: int, shift: float) -> list[float]:
    """Return `steps` + 1 times from 0 to 1, even before the shift."""
    return [shift_time(n / steps, shift) for n in range(steps + 1)]


def dpm_grid(steps: int, shift: float) -> list[float]:
    """Return `steps` + 1 times from just after 0 to 1, even before the shift."""
    span = 1 - FIRST_DPM_TIME
    return [shift_time(FIRST_DPM_TIME + span * n / steps, shift) for n in range(steps)] + [1.0]


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """First order, one call per step: follow the slope at the start (Euler)."""
    for t, s in pairwise(times):
        x = x + (s - t) * velocity(x, t)
        yield x


def midpoint(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Second order, two calls per step: follow the slope found half-way (explicit midpoint)."""
    for t, s in pairwise(times):
        half = (s - t) / 2
        x = x + (s - t) * velocity(x + half * velocity(x, t), t + half)
        yield x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Second order, two calls per step: step by the mean of the slopes at both ends (Heun)."""
    for t, s in pairwise(times):
        start = velocity(x, t)
        end = velocity(x + (s - t) * start, s)
        x = x + (s - t) * (start + end) / 2
        yield x


def dpm(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Second order, one call per step: Flow-DPM-Solver++ 2M, which extrapolates the predicted data.

    A step is exact where the predicted data is constant. After the first step the data moves as it last did,
    measured in the logarithm of odds(t) = t / (1 - t); the first and the last step keep it constant.
    Source: DPM-Solver++ (arXiv 2211.01095) on the straight path, as in Sana (arXiv 2410.10629).
    """
    last = len(times) - 2
    before, step_before = None, 0.0
    for n, (t, s) in enumerate(pairwise(times)):
        data = data_from(x, velocity(x, t), t)
        shrink = t * (1 - s) / ((1 - t) * s)  # odds(t) / odds(s)
        step = -math.log(shrink) if shrink > 0 else math.inf
        aim = data
        if before is not None and n < last:
            aim = data + (data - before) * (step / (2 * step_before))
        x = (1 - s) / (1 - t) * x + s * (1 - shrink) * aim
        before, step_before = data, step
        yield x


dpm.grid = dpm_grid

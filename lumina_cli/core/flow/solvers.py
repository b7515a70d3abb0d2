"""Solvers of dx/dt = velocity(x, t): generators that yield the state at the end of every step.

A solver takes `velocity(x, t) -> like x`, the state at times[0] and rising times; it keeps the state's dtype.
A plan spaces the times evenly from 0 to 1, then shifts them; a solver that wants others has its own `grid`,
and one that calls the network more than once a step says how often in `calls`.
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


def dpmpp_2m_grid(steps: int, shift: float) -> list[float]:
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


def rk4(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Fourth order, four calls per step: the 3/8 rule (Kutta), which the official programs call rk4."""
    for t, s in pairwise(times):
        step = s - t
        first = velocity(x, t)
        second = velocity(x + step / 3 * first, t + step / 3)
        third = velocity(x + step * (second - first / 3), t + 2 * step / 3)
        fourth = velocity(x + step * (first - second + third), s)
        x = x + step / 8 * (first + 3 * (second + third) + fourth)
        yield x


def dpmpp_2m(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
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


def unipc(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Third order, one call per step: UniPC-2, which predicts a state and mends it with the call made there.

    It follows the predicted data along the logarithm of odds(t) = t / (1 - t), as `dpm` does. The call at the
    end of a step mends the step that led there, which gains an order; what is still unknown at the last step
    to t = 1 counts for nothing there. Source: UniPC (arXiv 2302.04867), its B2 variant, on the straight path.
    """
    known: list[tuple[float, Tensor]] = []  # (log odds, predicted data) of the last two calls
    start, since = x, 0.0  # the mended state at the last call, and its time
    for t, s in pairwise(times):
        here = _log_odds(t), data_from(x, velocity(x, t), t)
        if known:
            x = _along(start, since, t, known, here)
        known = [*known[-1:], here]
        start, since = x, t
        x = _along(start, t, s, known)
        yield x


def _along(x: Tensor, t: float, s: float, known: list, end: tuple[float, Tensor] | None = None) -> Tensor:
    """Move `x` from time t to s by the data last `known`, and by how it moved and, given its `end`, moves."""
    here, data = known[-1]
    if s >= 1:
        return data
    step = _log_odds(s) - here
    others = [*known[:-1], end] if end else known[:-1]
    ratios = [(place - here) / step for place, _ in others]
    aim = data
    for weight, ratio, (_, other) in zip(_weights(ratios, step), ratios, others, strict=True):
        aim = aim + weight / ratio * (other - data)
    return (1 - s) / (1 - t) * x - s * math.expm1(-step) * aim


def _weights(ratios: list[float], step: float) -> list[float]:
    """How much each known change of the data counts, at `ratios` of the step's length; 1 is its end."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    first = (math.expm1(-step) / -step - 1) / math.expm1(-step)
    second = ((math.expm1(-step) / -step - 1) / -step - 0.5) * 2 / math.expm1(-step)
    weight = (first - second) / (1 - ratios[0])
    return [weight, first - weight]


def _log_odds(t: float) -> float:
    return math.log(max(t, 1e-9) / (1 - t))  # finite at t = 0, too


dpmpp_2m.grid = unipc.grid = dpmpp_2m_grid
midpoint.calls = heun.calls = 2
rk4.calls = 4

"""Which calls of the network may reuse what its main layers did before: decided for each picture by itself.

Neighbouring calls are alike, and so is what the main layers add to the image tokens, their residual. Each
branch of a picture, with its caption and without, has a `Memory` of its own, so what is drawn beside it,
where guidance begins and ends, and how often a solver calls in a step do not touch it. The branches that one
call has run together or not at all: guidance multiplies their difference, and with it the difference between
a new velocity and an old one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Protocol

import torch
from torch import Tensor

from lumina_cli.core.errors import UsageError

DEGREE = 4


def relative_change(now: Tensor, before: Tensor) -> float:
    """Return the relative change mean|now - before| / mean|before|."""
    now, before = now.float(), before.float()
    size = before.abs().mean()
    return ((now - before).abs().mean() / size.clamp(min=torch.finfo(size.dtype).tiny)).item()


@dataclass(frozen=True)
class Curve:
    """A polynomial that is never negative and never falls, in Bernstein's form.

    heights   n + 1 numbers from 0 that do not fall: the polynomial has degree n
    until     where the fitted range, which begins at 0, ends; from there on the line from 0 goes on
    """

    heights: tuple[float, ...]
    until: float

    def __call__(self, x: float) -> float:
        """Return the value at `x`, 0 or more."""
        if x > self.until:
            return self.heights[-1] * x / self.until
        weights = _weights(x / self.until, len(self.heights) - 1)
        return sum(height * weight for height, weight in zip(self.heights, weights, strict=True))


def _weights(u: float, degree: int) -> list[float]:
    """Bernstein's polynomials of a degree at `u` in [0, 1]."""
    return [comb(degree, k) * u**k * (1 - u) ** (degree - k) for k in range(degree + 1)]


def fit_curve(x: Sequence[float], y: Sequence[float], degree: int = DEGREE) -> tuple[Curve, float]:
    """Return the curve that fits the points best in squares, and the share of their variance it explains.

    The rises between heights are what is fitted, each at least 0. There are few of them, so every choice of
    those that are 0 is tried: the best one without a negative rise is the exact solution.
    """
    until = max(x)
    if len(x) <= degree or not until > 0:
        raise UsageError(f"{len(x)} changes up to {until:g} are too few to fit a curve to")
    bernstein = torch.tensor([_weights(value / until, degree) for value in x], dtype=torch.float64)
    steps = bernstein.flip(1).cumsum(1).flip(1)  # column k: what a rise of 1 at height k adds
    target = torch.tensor(list(y), dtype=torch.float64)
    best, least = torch.zeros(degree + 1, dtype=torch.float64), target.square().sum()
    for size in range(1, degree + 2):
        for chosen in map(list, combinations(range(degree + 1), size)):
            rises = torch.linalg.lstsq(steps[:, chosen], target[:, None]).solution[:, 0]
            missed = (steps[:, chosen] @ rises - target).square().sum()
            if missed < least and rises.min() >= 0:
                best, least = torch.zeros_like(best).index_put((torch.tensor(chosen),), rises), missed
    spread = (target - target.mean()).square().sum()
    return Curve(tuple(best.cumsum(0).tolist()), until), (1 - least / spread).item() if spread > 0 else 1.0


@dataclass
class BranchState:
    """What is known of one branch of a picture.

    signal     what changes are measured against, (tokens, D)
    distance   how far it has come since the main layers last ran
    residual   what they added to its image tokens then, (N, D)
    """

    signal: Tensor | None = None
    distance: float = 0.0
    residual: Tensor | None = None


@dataclass
class GenerationState:
    """Where the draw of one picture is.

    total      calls of the whole draw
    made       calls so far
    rows       rows of these calls: one without guidance, two with it
    skipped    rows whose main layers were left out
    branches   the memories of the branches: with the caption, without it
    """

    total: int
    made: int = 0
    rows: int = 0
    skipped: int = 0
    branches: tuple[BranchState, BranchState] = field(default_factory=lambda: (BranchState(), BranchState()))


class CachePolicy(Protocol):
    """Measures how far a branch is from where its residual was computed; at `threshold` it is too far."""

    threshold: float

    def measure(self, memory: BranchState, signal: Tensor) -> float:
        """Return how far; called once in every call."""

    def settle(self, memory: BranchState, signal: Tensor) -> None:
        """Take note that the main layers run in this call."""


@dataclass(frozen=True)
class TeaCache:
    """TeaCache: the signal's change from call to call, through a curve fitted to the model, adds up.

    Source: arXiv 2411.19108.
    """

    threshold: float
    curve: Curve

    def measure(self, memory: BranchState, signal: Tensor) -> float:
        if memory.signal is not None:
            memory.distance += self.curve(relative_change(signal, memory.signal))
        memory.signal = signal
        return memory.distance

    def settle(self, memory: BranchState, signal: Tensor) -> None:
        memory.distance = 0.0


@dataclass(frozen=True)
class FirstBlockCache:
    """The residual of the first layer alone, against what it was where all the layers last ran."""

    threshold: float

    def measure(self, memory: BranchState, signal: Tensor) -> float:
        memory.distance = 0.0 if memory.signal is None else relative_change(signal, memory.signal)
        return memory.distance

    def settle(self, memory: BranchState, signal: Tensor) -> None:
        memory.signal = signal


def should_run(rule: CachePolicy, progress: GenerationState, signals: Sequence[Tensor]) -> bool:
    """Return whether the main layers run in this call of a picture, which has a signal for each branch in it.

    They do where a branch has come too far or was never computed, and in the last call of the draw.
    """
    called = list(zip(progress.branches, signals, strict=False))
    near = [rule.measure(*branch) < rule.threshold for branch in called]  # never of what is not a number
    first, last = any(memory.residual is None for memory, _ in called), progress.made == progress.total - 1
    runs = first or last or not all(near)
    if runs:
        for branch in called:
            rule.settle(*branch)
    progress.made += 1
    progress.rows += len(called)
    progress.skipped += 0 if runs else len(called)
    return runs

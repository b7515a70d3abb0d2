"""Cache policies: which calls of the network reuse the residual of its main layers.

The main layers are the transformer blocks that process text and image tokens jointly, after the refiners;
they take most of the time of a call. Their residual is their output minus their input, for the image tokens.
It is similar in successive calls. If the inputs have changed little since the last full computation, the
cached residual is added instead. This is decided per image: each guidance branch of an image has its own
`BranchState`, so other images of the batch, the interval of guidance and the number of calls per step of a
solver do not matter. The branches of one call are computed together or not at all: guidance multiplies their
difference, and so would multiply the difference between a new velocity and a cached one.

Source: TeaCache, arXiv 2411.19108, whose terms are used here: relative L1 distance, accumulated distance,
threshold, residual.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Protocol

import torch
from torch import Tensor

from lumina_cli.core.errors import UsageError

DEGREE = 4


def relative_l1_distance(now: Tensor, before: Tensor) -> float:
    """Return mean|now - before| / mean|before|."""
    now, before = now.float(), before.float()
    size = before.abs().mean()
    return ((now - before).abs().mean() / size.clamp(min=torch.finfo(size.dtype).tiny)).item()


@dataclass(frozen=True)
class Curve:
    """A nonnegative, nondecreasing polynomial in Bernstein form.

    heights   Bernstein coefficients, n + 1 for degree n, nonnegative and nondecreasing
    until     upper end of the fitted range, which starts at 0; beyond it, the line through 0 and the last
              height continues
    """

    heights: tuple[float, ...]
    until: float

    def __call__(self, x: float) -> float:
        """Return the value at `x` >= 0."""
        if x > self.until:
            return self.heights[-1] * x / self.until
        weights = _bernstein(x / self.until, len(self.heights) - 1)
        return sum(height * weight for height, weight in zip(self.heights, weights, strict=True))


def _bernstein(u: float, degree: int) -> list[float]:
    """The Bernstein polynomials of a degree at `u` in [0, 1]."""
    return [comb(degree, k) * u**k * (1 - u) ** (degree - k) for k in range(degree + 1)]


def fit_curve(x: Sequence[float], y: Sequence[float], degree: int = DEGREE) -> tuple[Curve, float]:
    """Fit a curve to points by least squares; return it and R², the fraction of variance that it explains.

    The unknowns are the increments between successive heights. Nonnegative increments give nonnegative,
    nondecreasing heights, so this is a nonnegative least squares problem.

    Raises:
        UsageError: if there are not more points than the degree, or no x is positive.
    """
    from scipy.optimize import nnls  # here: importing scipy takes long, and only a fit needs it

    until = max(x)
    if len(x) <= degree:
        raise UsageError(
            f"too few data points to fit the curve ({len(x)}, need at least {degree + 1}); use more prompts"
        )
    if not until > 0:
        raise UsageError(f"cannot fit the curve: the inputs of all {len(x)} data points are 0")
    bernstein = torch.tensor([_bernstein(value / until, degree) for value in x], dtype=torch.float64)
    steps = bernstein.flip(1).cumsum(1).flip(1)  # column k: the effect of an increment of 1 at height k
    target = torch.tensor(list(y), dtype=torch.float64)
    increments, missed = nnls(steps.numpy(), target.numpy())
    spread = (target - target.mean()).square().sum().item()
    heights = torch.from_numpy(increments).cumsum(0).tolist()
    return Curve(tuple(heights), until), 1 - missed**2 / spread if spread > 0 else 1.0


@dataclass
class BranchState:
    """State of one guidance branch of an image.

    reference              tensor that the next relative L1 distance is measured against
    accumulated_distance   since the main layers were last computed
    residual               (N, D) that they then added to the image tokens
    """

    reference: Tensor | None = None
    accumulated_distance: float = 0.0
    residual: Tensor | None = None


@dataclass
class GenerationState:
    """State of one image.

    total_calls   of the whole plan
    calls         made so far
    entries       batch entries of these calls: one per call without guidance, two with it
    skipped       batch entries that reused a residual
    branches      with the caption, without it
    """

    total_calls: int
    calls: int = 0
    entries: int = 0
    skipped: int = 0
    branches: tuple[BranchState, BranchState] = field(default_factory=lambda: (BranchState(), BranchState()))


class CachePolicy(Protocol):
    """Measures how far a branch is from the last computation; at `threshold` the main layers are computed."""

    threshold: float

    def update(self, state: BranchState, signal: Tensor) -> float:
        """Return the accumulated distance of a branch with a new signal; called once in each call."""

    def reset(self, state: BranchState, signal: Tensor) -> None:
        """Record that the main layers are computed in this call."""


@dataclass(frozen=True)
class TeaCache:
    """TeaCache: distances between successive calls, rescaled by a curve fitted to the model, accumulate.

    The signal is the modulated input of the first main layer. Source: arXiv 2411.19108.
    """

    threshold: float
    curve: Curve

    def update(self, state: BranchState, signal: Tensor) -> float:
        if state.reference is not None:
            state.accumulated_distance += self.curve(relative_l1_distance(signal, state.reference))
        state.reference = signal
        return state.accumulated_distance

    def reset(self, state: BranchState, signal: Tensor) -> None:
        state.accumulated_distance = 0.0


@dataclass(frozen=True)
class FirstBlockCache:
    """First block cache: distance of the first main layer's residual from that of the last computation."""

    threshold: float

    def update(self, state: BranchState, signal: Tensor) -> float:
        known = state.reference is not None
        state.accumulated_distance = relative_l1_distance(signal, state.reference) if known else 0.0
        return state.accumulated_distance

    def reset(self, state: BranchState, signal: Tensor) -> None:
        state.reference = signal


def should_run(policy: CachePolicy, state: GenerationState, signals: Sequence[Tensor]) -> bool:
    """Return whether to compute the main layers in this call of an image, with one signal for each branch.

    They are computed if a branch reaches the threshold or has no residual yet, and in the last call.
    """
    branches = list(zip(state.branches, signals, strict=False))
    # a list, since every branch must be updated; NaN is not below the threshold, so it is never cached
    near = [policy.update(*branch) < policy.threshold for branch in branches]
    first = any(branch.residual is None for branch, _ in branches)
    last = state.calls == state.total_calls - 1
    runs = first or last or not all(near)
    if runs:
        for branch in branches:
            policy.reset(*branch)
    state.calls += 1
    state.entries += len(branches)
    state.skipped += 0 if runs else len(branches)
    return runs

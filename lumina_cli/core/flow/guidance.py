"""Classifier-free guidance and its renormalization: velocity -> velocity, for each image on its own.

v_cond     (B, ...)   velocity with the captions
v_uncond   (B, ...)   velocity without captions, or with the negative prompts
x          (B, ...)   the state at which both were computed, at time t
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lumina_cli.core.flow.path import predict_data
from lumina_cli.core.flow.solvers import Velocity

END = 1 - 1e-6  # from this time on, the predicted data is the state itself
NORMS = ("velocity", "data")
Combine = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (v_cond, v_uncond, x, t) -> guided velocity


class GuidanceSettings(Protocol):
    """The settings of a plan that an entry of GUIDANCE can use; see `Plan`."""

    @property
    def guidance(self) -> float: ...
    @property
    def parallel(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def push_limit(self) -> float | None: ...


@dataclass(frozen=True)
class Guidance:
    """A way to combine the two guidance branches: an entry of GUIDANCE. Calling it calls `build`.

    build       settings of a plan -> Combine; called once per generation
    zero_init   whether the velocity of the first step is zero, without a network call
    """

    build: Callable[[GuidanceSettings], Combine]
    zero_init: bool = False

    def __call__(self, settings: GuidanceSettings) -> Combine:
        """Return the function that combines the branches in one generation."""
        return self.build(settings)


@Guidance
def cfg_guidance(settings: GuidanceSettings) -> Combine:
    """Classifier-free guidance (arXiv 2207.12598)."""
    return cfg(settings.guidance)


@Guidance
def apg_guidance(settings: GuidanceSettings) -> Combine:
    """Adaptive projected guidance (arXiv 2410.02416)."""
    return apg(settings.guidance, settings.parallel, settings.momentum, settings.push_limit)


@partial(Guidance, zero_init=True)
def cfg_zero_guidance(settings: GuidanceSettings) -> Combine:
    """CFG-Zero* with zero-init: optimized scale, first step skipped (arXiv 2503.18886)."""
    return zero_star(settings.guidance)


def guide(
    paired: Velocity, combine: Combine, ratio: float | str | None = 1.0, of: str = "velocity"
) -> Velocity:
    """Return the guided velocity (B, ...) -> (B, ...).

        paired    (2B, ...) -> (2B, ...)   first half with the captions, second half without
        combine   what `cfg`, `apg` or `zero_star` returns
        ratio     a number: see `renorm`; "row": see `renorm_rows`; None: no renormalization
        of        which norms are compared, one of NORMS; for "data" see `renorm_data`

    Source: Lumina-Image 2.0, CFG-Renorm.
    """

    def guided(x: Tensor, t: float) -> Tensor:
        v_cond, v_uncond = paired(torch.cat([x, x]), t).chunk(2)
        v = combine(v_cond, v_uncond, x, t)
        if ratio is None:
            return v
        if of == "data":
            return renorm_data(v, v_cond, x, t, ratio)
        return _renorm(v, v_cond, ratio)

    return guided


def cfg(scale: float) -> Combine:
    """Classifier-free guidance: v_uncond + scale (v_cond - v_uncond). Source: arXiv 2207.12598."""
    return lambda v_cond, v_uncond, x, t: v_uncond + scale * (v_cond - v_uncond)


def zero_star(scale: float) -> Combine:
    """CFG-Zero*: classifier-free guidance with an optimized scale of the unconditional velocity.

        s = <v_cond, v_uncond> / ||v_uncond||^2 for each image
        v = s v_uncond + scale (v_cond - s v_uncond)

    Source: CFG-Zero* (arXiv 2503.18886).
    """

    def combine(v_cond: Tensor, v_uncond: Tensor, x: Tensor, t: float) -> Tensor:
        v_uncond = project(v_cond, v_uncond)
        return v_uncond + scale * (v_cond - v_uncond)

    return combine


def apg(scale: float, parallel: float = 0.0, momentum: float = -0.5, limit: float | None = None) -> Combine:
    """Adaptive projected guidance, in terms of the predicted data x0 = x + (1 - t) v.

        push       x0_cond - x0_uncond + momentum * the push of the previous call
        parallel   factor for the component of the push that is parallel to x0_cond (eta)
        momentum   negative values emphasize what changed since the previous call (beta)
        limit      largest norm of the push of an image (r), or None

    Use a new one for each generation, since it holds the previous push. At t = 1, where x0 is the state,
    v_cond is returned. Source: APG (arXiv 2410.02416).
    """
    last: Tensor | float = 0.0

    def combine(v_cond: Tensor, v_uncond: Tensor, x: Tensor, t: float) -> Tensor:
        nonlocal last
        if t >= END:
            return v_cond
        last = push = (1 - t) * (v_cond - v_uncond) + momentum * last
        if limit is not None:
            norm = vector_norm(push, dim=_axes(push), keepdim=True)
            push = push * (limit / norm.clamp(min=_tiny(norm))).clamp(max=1)
        push_parallel = project(push, predict_data(x, v_cond, t))
        return v_cond + (scale - 1) / (1 - t) * (push - (1 - parallel) * push_parallel)

    return combine


def project(x: Tensor, onto: Tensor) -> Tensor:
    """Return the projection of each image of `x` (B, ...) onto the same image of `onto` (B, ...)."""
    axes = _axes(onto)
    squared = onto.square().sum(axes, keepdim=True)
    return (x * onto).sum(axes, keepdim=True) / squared.clamp(min=_tiny(squared)) * onto


def renorm(v: Tensor, v_cond: Tensor, ratio: float = 1.0) -> Tensor:
    """Scale each image of `v` (B, ...) down to at most `ratio` times its norm in `v_cond`.

    Source: Lumina-Image 2.0, CFG-Renorm, as in the official code, which never scales up.
    """
    limit, norm = (vector_norm(x, dim=_axes(x), keepdim=True) for x in (v_cond, v))
    return v * (ratio * limit / norm.clamp(min=_tiny(norm))).clamp(max=1)


def renorm_rows(v: Tensor, v_cond: Tensor) -> Tensor:
    """Scale each row of `v` (..., W), up or down, to its norm in `v_cond`: diffusers' `cfg_normalization`."""
    limit, norm = (vector_norm(x, dim=-1, keepdim=True) for x in (v_cond, v))
    return v * (limit / norm.clamp(min=_tiny(norm)))


def renorm_data(v: Tensor, v_cond: Tensor, x: Tensor, t: float, ratio: float | str) -> Tensor:
    """Renormalize the predicted data instead of the velocity; return a velocity (B, ...).

    At t = 1 the state is the data, and `v` is returned. ComfyUI's RenormCFG does the same.
    """
    if t >= END:
        return v
    x0 = predict_data(x, v, t)
    return v + (_renorm(x0, predict_data(x, v_cond, t), ratio) - x0) / (1 - t)


def _renorm(v: Tensor, v_cond: Tensor, ratio: float | str) -> Tensor:
    return renorm_rows(v, v_cond) if isinstance(ratio, str) else renorm(v, v_cond, ratio)


def _axes(x: Tensor) -> tuple[int, ...]:
    """The axes of one image."""
    return tuple(range(1, x.ndim))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny

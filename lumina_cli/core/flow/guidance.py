"""Classifier-free guidance and its renormalisation: velocity -> velocity, per picture.

captioned, free, x   (B, ...)   velocities with the captions, without them, and the state that they act on
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lumina_cli.core.flow.path import data_from
from lumina_cli.core.flow.solvers import Velocity

END = 1 - 1e-6  # from here on the predicted data is the state itself
NORMS = ("velocity", "data")
Combine = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (captioned, free, x, t) -> velocity to follow


def guide(
    paired: Velocity, combine: Combine, ratio: float | str | None = 1.0, of: str = "velocity"
) -> Velocity:
    """Return the guided velocity (B, ...).

        paired    (2B, ...) -> (2B, ...)   first half with the captions, second half without
        combine   what `cfg`, `apg` or `zero_star` return
        ratio     a number: see `renorm`; "row": see `renorm_rows`; None leaves the guided velocity as it is
        of        whose norms are compared: one of NORMS; see `renorm_data`

    Source: Lumina-Image 2.0, CFG-Renorm; arXiv 2207.12598.
    """

    def guided(x: Tensor, t: float) -> Tensor:
        captioned, free = paired(torch.cat([x, x]), t).chunk(2)
        velocity = combine(captioned, free, x, t)
        if ratio is None:
            return velocity
        if of == "data":
            return renorm_data(velocity, captioned, x, t, ratio)
        return _renormed(velocity, captioned, ratio)

    return guided


def cfg(scale: float) -> Combine:
    """Plain guidance: free + scale (captioned - free)."""
    return lambda captioned, free, x, t: free + scale * (captioned - free)


def zero_star(scale: float) -> Combine:
    """CFG-Zero*: `free` is first scaled to come as near to `captioned` as it can.

    Source: arXiv 2503.18886.
    """

    def combine(captioned: Tensor, free: Tensor, x: Tensor, t: float) -> Tensor:
        free = project(captioned, free)
        return free + scale * (captioned - free)

    return combine


def apg(scale: float, parallel: float = 0.0, momentum: float = -0.5, limit: float | None = None) -> Combine:
    """Adaptive projected guidance: of the push between predicted data keep what turns, not what amplifies.

        parallel   share kept of the push's part along the captioned data
        momentum   share of the last push that is added to this one; negative shows what is new
        limit      largest norm of the push of one picture, or None

    For one draw: it remembers the last push. At t = 1 the state is the data, and the caption's velocity is
    returned. Source: arXiv 2410.02416.
    """
    last: Tensor | float = 0.0

    def combine(captioned: Tensor, free: Tensor, x: Tensor, t: float) -> Tensor:
        nonlocal last
        if t >= END:
            return captioned
        last = push = (1 - t) * (captioned - free) + momentum * last
        if limit is not None:
            norm = vector_norm(push, dim=_axes(push), keepdim=True)
            push = push * (limit / norm.clamp(min=_tiny(norm))).clamp(max=1)
        along = project(push, data_from(x, captioned, t))
        return captioned + (scale - 1) / (1 - t) * (push - (1 - parallel) * along)

    return combine


def project(x: Tensor, onto: Tensor) -> Tensor:
    """Return the part of each picture of `x` (B, ...) that lies along the same picture of `onto`."""
    axes = _axes(onto)
    length = onto.square().sum(axes, keepdim=True)
    return (x * onto).sum(axes, keepdim=True) / length.clamp(min=_tiny(length)) * onto


def renorm(guided: Tensor, plain: Tensor, ratio: float = 1.0) -> Tensor:
    """Scale each picture of `guided` (B, ...) down to at most `ratio` times its norm in `plain`."""
    limit, norm = (vector_norm(x, dim=_axes(x), keepdim=True) for x in (plain, guided))
    return guided * (ratio * limit / norm.clamp(min=_tiny(norm))).clamp(max=1)


def renorm_rows(guided: Tensor, plain: Tensor) -> Tensor:
    """Scale each row of `guided` (..., W), up or down, to its norm in `plain`: what diffusers does."""
    limit, norm = (vector_norm(x, dim=-1, keepdim=True) for x in (plain, guided))
    return guided * (limit / norm.clamp(min=_tiny(norm)))


def renorm_data(guided: Tensor, plain: Tensor, x: Tensor, t: float, ratio: float | str) -> Tensor:
    """Renormalise the data that a velocity leads to from `x`, not the velocity; return a velocity.

    At t = 1 the state is the data, and nothing changes. It is what ComfyUI's RenormCFG does.
    """
    if t >= END:
        return guided
    data = data_from(x, guided, t)
    return guided + (_renormed(data, data_from(x, plain, t), ratio) - data) / (1 - t)


def _renormed(guided: Tensor, plain: Tensor, ratio: float | str) -> Tensor:
    return renorm_rows(guided, plain) if ratio == "row" else renorm(guided, plain, ratio)


def _axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny

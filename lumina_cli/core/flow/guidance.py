"""Classifier-free guidance, cut off in time and renormalised: velocity -> velocity, picture by picture."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lumina_cli.core.flow.solvers import Velocity


def guide(
    plain: Velocity, paired: Velocity, scale: float = 4.0, until: float = 1.0, ratio: float | None = 1.0
) -> Velocity:
    """Return `plain` pushed away from the velocity without a caption while t < `until` (1: always).

        plain     (B, ...) -> (B, ...)     with each picture's caption
        paired    (2B, ...) -> (2B, ...)   first half with the captions, second half without
        ratio     see `renorm`; None leaves the guided velocity as it is

    Later than `until` only `plain` is called, on half as many rows. Source: Lumina-Image 2.0, CFG-Trunc and
    CFG-Renorm; arXiv 2207.12598.
    """

    def guided(x: Tensor, t: float) -> Tensor:
        if t >= until and until < 1:
            return plain(x, t)
        captioned, free = paired(torch.cat([x, x]), t).chunk(2)
        velocity = free + scale * (captioned - free)
        return velocity if ratio is None else renorm(velocity, captioned, ratio)

    return guided


def renorm(guided: Tensor, plain: Tensor, ratio: float = 1.0) -> Tensor:
    """Scale each picture of `guided` (B, ...) down to at most `ratio` times its norm in `plain`."""
    axes = tuple(range(1, plain.ndim))
    limit = ratio * vector_norm(plain, dim=axes, keepdim=True)
    norm = vector_norm(guided, dim=axes, keepdim=True)
    return guided * (limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)

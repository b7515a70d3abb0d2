"""What lies between matrix products, as plain formulas that torch's compiler makes one loop of each.

n tokens, D width, h heads, d head width. `packed.py` computes the same in chunks if nobody compiles.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lumina_cli.core.device import find_compiler
from lumina_cli.core.errors import MissingDependency

VARIANTS = 64  # of one formula: one row or many, one head width or another


def norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x (n, D) float32 divided by its root mean square, times gain (1 or n, D), in `dtype`."""
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain).to(dtype)


def add(x: Tensor, y: Tensor, gain: Tensor, eps: float) -> None:
    """Add the norm of y (n, D) times gain (1 or n, D) to x (n, D) float32, in place."""
    x += norm(y.float(), gain, eps, torch.float32)


def rotate(x: Tensor, weight: Tensor, turns: Tensor, eps: float, out: Tensor) -> None:
    """Write x (n, h, d), normalised, times weight (d,) and turned, to out (h, n, d); turns (n, 1, d/2, 2)."""
    wide = norm(x.float(), weight, eps, torch.float32).unflatten(-1, (-1, 2))
    (a, b), (cos, sin) = wide.unbind(-1), turns.unbind(-1)
    pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    out.copy_(pairs.flatten(-2).transpose(0, 1))


def gate(x: Tensor, y: Tensor) -> Tensor:
    """silu(x) y."""
    return (F.silu(x.float()) * y).to(x.dtype)


def check_compiler() -> None:
    """Raise MissingPart where a CPU has no C++ compiler, which torch's compiler calls there."""
    if not torch.cuda.is_available() and not find_compiler():
        raise MissingDependency(
            "--compile needs a C++ compiler (g++ or clang++); install one, or leave it out"
        )


@cache
def compiled(formula: Callable) -> Callable:
    """A formula of this module as one loop."""
    check_compiler()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    return torch.compile(formula, fullgraph=True, dynamic=True)

"""Elementwise operations of `block.py` as plain formulas, for `torch.compile` to fuse each into one kernel.

A new formula belongs here if `torch.compile` fuses it and `block.py` uses it. An operation with a float64
reference and alternative implementations is an `Op` in KERNELS; see `core/kernels/`.

n tokens, D width, h heads, d head width. Without compilation, `block.py` computes the same in chunks.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lumina_cli.core.device import find_compiler
from lumina_cli.core.errors import MissingDependency

VARIANTS = 64  # compilations per formula: for one or many rows, for each head width


def norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return RMSNorm(x) times `gain` in `dtype`; x (n, D) float32, gain (1 or n, D)."""
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain).to(dtype)


def add(x: Tensor, y: Tensor, gain: Tensor, eps: float) -> None:
    """Add RMSNorm(y) times `gain` to x in place; x (n, D) float32, y (n, D), gain (1 or n, D)."""
    x += norm(y.float(), gain, eps, torch.float32)


def rotate(x: Tensor, weight: Tensor, rotations: Tensor, eps: float, out: Tensor) -> None:
    """Write x, normalized, times `weight` and rotated, to `out`.

    x           (n, h, d)
    weight      (d,)
    rotations   (n, 1, d/2, 2)   cosine and sine
    out         (h, n, d)
    """
    wide = norm(x.float(), weight, eps, torch.float32).unflatten(-1, (-1, 2))
    (a, b), (cos, sin) = wide.unbind(-1), rotations.unbind(-1)
    pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    out.copy_(pairs.flatten(-2).transpose(0, 1))


def gate(x: Tensor, y: Tensor) -> Tensor:
    """Return silu(x) y, in the dtype of x."""
    return (F.silu(x.float()) * y).to(x.dtype)


def check_compiler() -> None:
    """Check that torch.compile has the C++ compiler that it needs on a CPU.

    Raises:
        MissingDependency: if there is neither a CUDA device nor a C++ compiler.
    """
    if not torch.cuda.is_available() and not find_compiler():
        raise MissingDependency(
            "--compile needs a C++ compiler (g++ or clang++); install one, or omit --compile"
        )


@cache
def compiled(formula: Callable) -> Callable:
    """Return a function of this module, compiled for any number of tokens."""
    check_compiler()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    return torch.compile(formula, fullgraph=True, dynamic=True)

"""Rotary position embedding on three axes (M-RoPE): tables in float64, rotation in float32 on real pairs.

B batch entries, h heads, d head width. Source: Lumina-Image 2.0, M-RoPE; RoPE: arXiv 2104.09864.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosine and sine of every angle, each (B or 1, tokens, d/2) in float32."""

    cos: Tensor
    sin: Tensor


@lru_cache(maxsize=16)
def axis_tables(
    axes_dim: tuple[int, ...], axes_len: tuple[int, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """Return for each axis cosine and sine of position * THETA^(-2j / size), (length, 2, size/2) float32."""
    tables = []
    # a table that is built while sampling is used again while training, so it must not be an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        for size, length in zip(axes_dim, axes_len, strict=True):
            exponents = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
            angles = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), THETA**-exponents)
            tables.append(torch.stack([angles.cos(), angles.sin()], dim=1).float().to(device))
    return tuple(tables)


def rotation_at(tables: tuple[Tensor, ...], positions: Tensor) -> Rotation:
    """Return the rotation at `positions` (B, tokens, 3), integers within the tables."""
    angles = torch.cat([table[positions[..., axis]] for axis, table in enumerate(tables)], dim=-1)
    return Rotation(angles[..., 0, :].contiguous(), angles[..., 1, :].contiguous())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each adjacent pair (2j, 2j + 1) of the last axis by its angle.

    x          (B, tokens, h, d)
    cos, sin   (B or 1, tokens, d/2)
    returns    (B, tokens, h, d) float32
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

"""Rotary positions on three axes (M-RoPE): tables in float64, rotation in float32 with real numbers only.

B pictures, M text tokens, N image tokens, h heads, d head width.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosine and sine of every angle, each (B or 1, tokens, d / 2) in float32."""

    cos: Tensor
    sin: Tensor


@lru_cache(maxsize=16)
def axis_tables(
    axes_dim: tuple[int, ...], axes_len: tuple[int, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """One (length, 2, size / 2) table of cosines and sines per axis."""
    tables = []
    # a table made while sampling is read again while training, so it must not be an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        for size, length in zip(axes_dim, axes_len, strict=True):
            steps = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
            angles = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), THETA**-steps)
            tables.append(torch.stack([angles.cos(), angles.sin()], dim=1).float().to(device))
    return tuple(tables)


def look_up(tables: tuple[Tensor, ...], positions: Tensor) -> Rotation:
    """The rotation of `positions` (B, tokens, 3), whole numbers inside the tables."""
    found = torch.cat([table[positions[..., axis]] for axis, table in enumerate(tables)], dim=-1)
    return Rotation(found[..., 0, :].contiguous(), found[..., 1, :].contiguous())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each adjacent pair of `x` (B, tokens, h, d) by its angle; returns float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

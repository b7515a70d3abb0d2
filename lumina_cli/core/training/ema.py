"""Exponential moving average of the weights; it generates better images than the weights themselves."""

from collections.abc import Iterable

import torch
from torch import Tensor


def ema_decay(updates: int, decay: float) -> float:
    """Return the decay after `updates` steps: low at first, so that the untrained weights fade quickly."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """Move each tensor of `average` towards the matching tensor of `weights` by 1 - decay, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)

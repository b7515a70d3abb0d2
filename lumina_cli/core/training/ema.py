"""An average of the weights over the last steps; it draws better pictures than the weights themselves."""

from collections.abc import Iterable

import torch
from torch import Tensor


def ema_decay(updates: int, decay: float) -> float:
    """Return the decay after some updates: short memory at first, so that the untrained start fades soon."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """Move each tensor of `average` towards its partner in `weights` by 1 - decay, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)

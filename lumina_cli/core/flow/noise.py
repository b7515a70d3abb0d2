"""Noise that depends on (seed, index) alone: not on the batch, the device, or what was drawn before."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 2**64


def draw_noise(seed: int, index: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise of `shape`, float32 on the CPU, from a counter keyed by (seed, index).

        seed      any integer
        index     number of the image under this seed; any integer
        shape     of one image's latents: (C, H, W)

    The values are computed in float64 and rounded once, so that they do not depend on the last bit of a
    processor's logarithm.
    """
    key = np.array([seed % WORD, index % WORD], dtype=np.uint64)
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape))
    return torch.from_numpy(normal.astype(np.float32))

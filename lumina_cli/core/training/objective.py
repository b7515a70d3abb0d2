"""Flow matching: the loss of a model on noised latents, and the auxiliary loss at low resolution.

B batch, C channels, H W latent size. Time runs from noise (0) to data (1).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lumina_cli.core.flow.path import interpolate, shift_time

Latents = Tensor | list[Tensor]
MAIN, LOW = 0, 1  # random streams of the main and the auxiliary loss


def draw_time_and_noise(
    seed: int, step: int, samples: Sequence[int], shapes: Sequence[tuple[int, ...]], stream: int = MAIN
) -> tuple[Tensor, list[Tensor]]:
    """Return times (B,) before their shift, and float32 noise of each of `shapes`, one per sample.

    The times are logit-normal: the sigmoid of a standard normal. Each value depends only on (seed, step,
    sample, stream), so that a resumed run draws the same numbers. `stream` is MAIN or LOW.
    """
    times, noises = [], []
    for sample, shape in zip(samples, shapes, strict=True):
        key, counter = [seed % 2**64, step], [0, 0, stream, sample]
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        times.append(1 / (1 + math.exp(-random.standard_normal())))
        noises.append(torch.from_numpy(random.standard_normal(shape, dtype=np.float32)))
    return torch.tensor(times), noises


def velocity_loss(
    velocity: Callable[[Latents, Tensor], Latents], data: Latents, noise: Latents, t: Tensor
) -> Tensor:
    """Return the mean squared error (B,) of the predicted velocity of each batch entry, over C, H and W.

    `data` and `noise` are (B, C, H, W), or lists of (C, H, W) of mixed sizes; `t` (B,) are shifted times;
    `velocity(x_t, t)` is the model with its text bound. The target is data - noise.
    """
    if isinstance(data, Tensor):
        error = velocity(interpolate(data, noise, t), t).float() - (data - noise)
        return error.square().flatten(1).mean(1)
    noisy = [interpolate(x[None], n[None], s[None])[0] for x, n, s in zip(data, noise, t, strict=True)]
    guesses = velocity(noisy, t)
    return torch.stack(
        [(v.float() - (x - n)).square().mean() for v, x, n in zip(guesses, data, noise, strict=True)]
    )


def stage_loss(
    velocity: Callable[[Latents, Tensor], Latents],
    data: Latents,
    draw: Callable,
    shift: float,
    auxiliary: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the mean loss of a batch and, if `auxiliary` > 0 (else None), that on latents pooled by 4.

    `draw(shapes, stream)` returns times before their shift, and noise. Both losses use the time shift of the
    full resolution, but times and noise of their own. Source: Lumina-Image 2.0, multi-domain training with
    the auxiliary loss.
    """
    losses = []
    for stream, x in enumerate((data, pool(data)) if auxiliary else (data,)):
        t, noise = draw([tuple(entry.shape) for entry in x], stream)
        noise = torch.stack(noise) if isinstance(x, Tensor) else noise
        losses.append(velocity_loss(velocity, x, noise, shift_time(t, shift)).mean())
    return losses[0], losses[1] if auxiliary else None


def pool(data: Latents) -> Latents:
    """Average latents over windows of 4 x 4."""
    return avg_pool2d(data, 4) if isinstance(data, Tensor) else [avg_pool2d(x, 4) for x in data]


def even_times(count: int) -> Tensor:
    """Return `count` times (count,) at evenly spaced quantiles of the logit-normal training distribution."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(quantiles).sigmoid().float()

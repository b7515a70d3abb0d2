"""The straight path between noise and data, its time shift, and the only conversion of diffusers' sigma.

Time t runs from 0 (noise) to 1 (data): x_t = t * data + (1 - t) * noise, velocity = data - noise.
"""

import math

from torch import Tensor

# Ends of the line along which the training shift grows, as (image tokens, mu).
FEW_TOKENS, FEW_MU = 256, 0.5
MANY_TOKENS, MANY_MU = 4096, 1.15


def interpolate(data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """Return x_t, (B, ...) like `data`; `t` is one time or one per picture, (B,)."""
    t = _per_picture(t, data)
    return t * data + (1 - t) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of the path from `noise` to `data`; it is the same at every time."""
    return data - noise


def data_from(x: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """Return the data that `x` at time `t` flows to if it keeps its `velocity`."""
    return x + (1 - _per_picture(t, x)) * velocity


def shift_time(t, s: float):
    """Spend more of [0, 1] near the noise, the more the larger `s`: t / (t + s (1 - t)); 1 is no shift."""
    return t / (t + s * (1 - t))


def train_shift(seq_len: int) -> float:
    """Return the shift for training on pictures of `seq_len` image tokens: e^0.5 at 256, e^1.15 at 4096."""
    slope = (MANY_MU - FEW_MU) / (MANY_TOKENS - FEW_TOKENS)
    return math.exp(FEW_MU + slope * (seq_len - FEW_TOKENS))


def to_sigma(t):
    """Convert a time to diffusers' sigma, which is 1 at the noise and 0 at the data."""
    return 1 - t


def from_sigma(sigma):
    """Convert diffusers' sigma to a time."""
    return 1 - sigma


def scheduler_config(shift: float) -> dict:
    """Return diffusers' scheduler_config.json for a static shift; its map of sigma mirrors `shift_time`."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
        "use_dynamic_shifting": False,
        "base_shift": FEW_MU,
        "max_shift": MANY_MU,
        "base_image_seq_len": FEW_TOKENS,
        "max_image_seq_len": MANY_TOKENS,
    }


def shift_from_scheduler(config: dict) -> float:
    """Return the shift that a diffusers scheduler_config.json asks for (1 where it names none)."""
    return float(config.get("shift", 1.0))


def _per_picture(t: Tensor | float, like: Tensor) -> Tensor | float:
    """Shape times (B,) so that they multiply `like`, (B, ...)."""
    return t.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(t, Tensor) and t.ndim else t

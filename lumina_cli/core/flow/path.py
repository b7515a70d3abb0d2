"""The straight path between noise and data, its time shift, and the conversion to diffusers' sigma.

Time t runs from 0 (noise) to 1 (data): x_t = t * data + (1 - t) * noise, velocity = data - noise.
Other conventions of time are converted here and nowhere else. Source: Lumina-Image 2.0, rectified flow.
"""

import math

from torch import Tensor

# The two points (image tokens, mu) of the line that the training shift e^mu follows.
BASE_TOKENS, BASE_MU = 256, 0.5
MAX_TOKENS, MAX_MU = 4096, 1.15


def interpolate(data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """Return x_t = t * data + (1 - t) * noise, (B, ...).

    data    (B, ...)
    noise   (B, ...)
    t       (B,) or one time for all images
    """
    t = _broadcast_time(t, data)
    return t * data + (1 - t) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of the path from `noise` to `data`, (B, ...); it is constant in time."""
    return data - noise


def predict_data(x: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """Return the data that `x` (B, ...) at time `t` reaches along a straight line: x + (1 - t) velocity."""
    return x + (1 - _broadcast_time(t, x)) * velocity


def shift_time(t, s: float):
    """Return t / (t + s (1 - t)): the larger the shift `s`, the more steps near the noise; 1 keeps t."""
    return t / (t + s * (1 - t))


def train_shift(seq_len: int) -> float:
    """Return the time shift for training on images of `seq_len` image tokens: e^0.5 at 256, e^1.15 at 4096.

    Source: the resolution-dependent shift of Stable Diffusion 3 (arXiv 2403.03206), with FLUX's linear mu.
    """
    slope = (MAX_MU - BASE_MU) / (MAX_TOKENS - BASE_TOKENS)
    return math.exp(BASE_MU + slope * (seq_len - BASE_TOKENS))


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
        "base_shift": BASE_MU,
        "max_shift": MAX_MU,
        "base_image_seq_len": BASE_TOKENS,
        "max_image_seq_len": MAX_TOKENS,
    }


def shift_from_scheduler(config: dict) -> float:
    """Return the shift in a diffusers scheduler_config.json, 1 if it does not contain one."""
    return float(config.get("shift", 1.0))


def _broadcast_time(t: Tensor | float, like: Tensor) -> Tensor | float:
    """Reshape times (B,) to (B, 1, ...), so that they broadcast over `like` (B, ...)."""
    return t.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(t, Tensor) and t.ndim else t

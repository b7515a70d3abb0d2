"""Ground truth of rendered scenes as PNG files: depth in thousandths of a unit, masks as labels."""

import numpy as np
from PIL import Image

from lumina_cli.core.images.io import decode_image, png_bytes

DEPTH_STEPS = 1000  # steps of a 16-bit depth per world unit; 65535 also stands for everything farther


def encode_depth(depth: np.ndarray) -> bytes:
    """Encode depth (H, W) in world units as a 16-bit grey PNG in thousandths of a unit."""
    steps = np.clip(np.round(depth.astype(np.float64) * DEPTH_STEPS), 0, 65535).astype(np.uint16)
    return png_bytes(Image.fromarray(steps))


def decode_depth(data: bytes) -> np.ndarray:
    """Return the depth (H, W), float32 in world units, that `encode_depth` encoded."""
    return decode_image(data, "depth", lambda image: np.asarray(image).astype(np.float32) / DEPTH_STEPS)


def encode_masks(masks: np.ndarray) -> bytes:
    """Encode masks (objects, H, W) as an 8-bit grey PNG: 0 is background, i + 1 is object i.

    If objects overlap, the last one is stored.
    """
    labels = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    return png_bytes(Image.fromarray(labels))


def decode_masks(data: bytes, objects: int) -> np.ndarray:
    """Return the masks (objects, H, W), bool, that `encode_masks` encoded."""
    labels = decode_image(data, "masks", np.asarray)
    return labels == np.arange(1, objects + 1)[:, None, None]

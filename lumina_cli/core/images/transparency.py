"""Transparency: of 16-bit images, which Pillow loses, and of layers that are masks."""

import numpy as np
from PIL import Image

ONE_COLOR = 8  # levels of grey within which the pixels of a layer have one color


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to uint8, which Pillow clips; a transparent level becomes an alpha channel."""
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
    level = image.info.get("transparency")
    if isinstance(level, int):
        grey.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return grey


def scale_transparent_color(image: Image.Image) -> None:
    """Scale the transparent color of a 16-bit PNG, whose pixels Pillow reads as their high bytes."""
    color = image.info.get("transparency")
    tile = getattr(image, "tile", None)
    if isinstance(color, tuple) and tile and "RGB;16B" in (tile[0][3], *tile[0][3:]):
        image.info["transparency"] = tuple(value >> 8 for value in color)


def to_mask(image: Image.Image) -> Image.Image:
    """Return the mask (mode L) in an image: its grey, black where it is transparent.

    Of a layer painted in one color, which may be black, the painted pixels are white.
    """
    if image.mode.startswith("I"):
        image = to_8_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB").convert("L")
    image = image.convert("RGBA")
    alpha, grey = np.asarray(image.getchannel("A")), np.asarray(image.convert("RGB").convert("L"))
    visible = grey[alpha > 0]
    if alpha.min() < 255 and visible.size and int(visible.max()) - int(visible.min()) <= ONE_COLOR:
        return Image.fromarray(alpha)
    return Image.fromarray(np.round(grey.astype(np.float32) * alpha / 255).astype(np.uint8))

"""Training sizes (aspect-ratio buckets): sizes of about the same area, from wide to tall.

Shards are cropped to these sizes and images are sampled at them; this module is shared because those stages
share only files.
"""

from functools import lru_cache

from PIL import Image

from lumina_cli.core.errors import UsageError

PATCH = 16  # pixels per side of an image token: autoencoder 8x, patch size 2
SQUARE = 64  # the smallest square whose pooled latents split into patches
MAX_RATIO = 4.0


@lru_cache
def crop_sizes(resolution: int) -> tuple[tuple[int, int], ...]:
    """Return the training sizes, (width, height) in pixels, of at most resolution^2 pixels, widest first.

    Each side is a multiple of 16 whose latents, pooled by 4 for the auxiliary loss, still split into patches.

    Raises:
        UsageError: if `resolution` is not a multiple of 64; only then the square is one of the sizes.
    """
    if resolution < SQUARE or resolution % SQUARE:
        raise UsageError(f"size {resolution} is not a multiple of {SQUARE}")
    tokens = round((resolution / PATCH) ** 2)
    sizes, width, height = [], tokens, 1
    while width > 0:
        ratio = max(width, height) / min(width, height)
        if ratio <= MAX_RATIO and (PATCH * width // 32) % 2 == 0 and (PATCH * height // 32) % 2 == 0:
            sizes.append((width * PATCH, height * PATCH))
        if (height + 1) * width <= tokens:
            height += 1
        else:
            width -= 1
    return tuple(sizes)


def best_size(width: float, height: float, resolution: int) -> tuple[int, int]:
    """Return the training size that keeps most of an image when it is cropped; of equal ones the larger."""

    def kept(size: tuple[int, int]) -> float:
        x, y = size[0] / width, size[1] / height
        return min(x, y) / max(x, y)

    return max(crop_sizes(resolution), key=lambda size: (kept(size), size))


def crop_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image to cover `size` (width, height) and crop its center: halving, then bicubic."""
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(size[0] / image.width, size[1] / image.height)
    if image.size != size:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))

"""Which size a picture is trained at, and the crop that fits it; the sizes are those of `formats.sizes`."""

from PIL import Image

from lumina_cli.core.formats.sizes import best_size, crop_sizes

__all__ = ["best_size", "crop_picture", "crop_sizes"]


def crop_picture(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to cover `size` (width, height) and cut its middle: by halves, then bicubic."""
    while image.width >= 2 * size[0] and image.height >= 2 * size[1]:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(size[0] / image.width, size[1] / image.height)
    if image.size != size:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))

"""Picture files: read what people have, trust none of it, and write whole files that say how they came."""

import json
import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.images.icc import expected_space, to_srgb
from lumina_cli.core.images.jpeg_check import find_fault
from lumina_cli.core.images.metadata import metadata_settings, read_parameters, stored_texts
from lumina_cli.core.io.atomic import atomic_write

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # about 89 million: a larger one is an attack more often than a picture
_OPTIONAL = ("WEBP", "AVIF")  # not in every build of Pillow
# Pillow also opens formats that start other programs (EPS); only these are read.
_FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    *(format for format in _OPTIONAL if features.check(format.lower())),
)
_WRITERS = {
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".avif": {"format": "AVIF", "quality": 90, "subsampling": "4:4:4"},
}
# Pillow only warns between one and two times the limit, an error here, and of broken EXIF, ignored here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", module="PIL")
_EXIF_ORIENTATION = 0x0112

_PLAIN_MODES = ("RGB", "RGBA", "L", "LA", "CMYK")  # a profile can speak of them

ImageSource = str | Path | bytes


class InvalidImage(LuminaError):
    """A picture that cannot be used; `code` is the reason in one word, one for each kind of fault."""

    def __init__(self, message: str, code: str = "not_an_image"):
        super().__init__(message)
        self.code = code


def open_image(source: ImageSource, name: str | None = None, whole: bool = False) -> Image.Image:
    """Return a picture as 8-bit sRGB, turned upright by its EXIF orientation, transparency over white.

    Of several frames it is the first; colours go by the ICC profile (images/ingest.py names every step).
    `source` is a path or the bytes of a file; `name` stands for it in errors. Raises BadPicture where it is
    missing, truncated, not a picture or larger than MAX_PIXELS. A damaged JPEG is grey from there on, unless
    it is to be `whole`: then it is bad, too (a third more time).
    """
    picture = decode_image(source, name, lambda image: _to_rgb(_upright(image)))
    if whole:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        _check_whole(data, name or (str(source) if isinstance(source, str | Path) else "picture"))
    return picture


def _check_whole(data: bytes, name: str) -> None:
    """Raise BadPicture for a JPEG of which Pillow shows a part; it is known to be within MAX_PIXELS."""
    fault = find_fault(data)
    if fault:
        raise InvalidImage(f"{name}: damaged ({fault})", "damaged")


def open_with_format(source: ImageSource, name: str | None = None) -> tuple[str, Image.Image]:
    """Return (format, picture as `open_image` gives it); the format is Pillow's word: "JPEG", "PNG"..."""
    return decode_image(source, name, lambda image: (image.format, _to_rgb(_upright(image))))


class ImageInfo(NamedTuple):
    """What a decoded picture says of itself; `size` is as it is seen, `space` what its profile must be of."""

    format: str
    size: tuple[int, int]
    space: str
    profile: bytes | None
    notes: tuple[str, ...]


def inspect_image(data: bytes, name: str) -> ImageInfo:
    """Decode a picture to see whether all of it can be used; BadPicture where it cannot."""
    seen = decode_image(data, name, _seen)
    _check_whole(data, name)
    return seen


def _seen(image: Image.Image) -> ImageInfo:
    several = getattr(image, "is_animated", False) and image.format != "MPO"
    profile, mode = image.info.get("icc_profile"), image.mode
    size = _to_rgb(_upright(image)).size  # as whoever reads it will
    notes = {"animated": several, "cmyk": mode == "CMYK", "16_bit": mode.startswith("I")}
    notes["alpha"] = image.has_transparency_data
    space = "GRAY" if mode.startswith("I") else expected_space(mode)
    return ImageInfo(image.format, size, space, profile, tuple(note for note, true in notes.items() if true))


def read_orientation(data: bytes) -> int:
    """Return how a picture is to be turned, 1 to 8 as EXIF counts; 1 where nothing sensible says so."""
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            turn = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1
    return turn if turn in range(1, 9) else 1


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """Return a picture as the bytes of a file, of the kind that "png", "webp", "jpg" or "avif" names."""
    if suffix == "png":
        return png_bytes(image)
    buffer = BytesIO()
    image.save(buffer, **_WRITERS[f".{suffix}"])
    return buffer.getvalue()


def too_large_error(name: str) -> InvalidImage:
    """Return the error for a picture of more than MAX_PIXELS."""
    return InvalidImage(
        f"{name}: more than {MAX_PIXELS // 10**6} million pixels; resize it first", "too_large"
    )


def read_metadata(source: ImageSource, name: str | None = None) -> dict:
    """Return what `save_picture` was given as metadata, or what another program's text of parameters says.

    The latter by the same names as far as it goes, with "parameters" among them (see images/a1111.py).
    {} for a picture that holds neither.
    """
    text, parameters = decode_image(source, name, stored_texts)
    try:
        value = json.loads(text) if isinstance(text, str) and text.startswith("{") else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    return read_parameters(parameters) if parameters else {}


def save_image(
    image: Image.Image, path: str | Path, metadata: dict | None = None, replace: bool = True
) -> Path:
    """Write a PNG, WebP, JPEG or AVIF, by suffix, with `metadata` inside, whole or not; return its path.

    Metadata stands there as JSON and, if it has a "prompt", as the text that other programs read. Raises
    UsageError for another suffix, MissingPart where Pillow was built without the format, LuminaError where a
    JPEG has no room for the JSON and OSError where the disk refuses; without `replace`, FileExistsError where
    the file is there (see `atomic_write`).
    """
    path = Path(path)
    settings = _WRITERS.get(path.suffix.lower())
    if settings is None:
        raise UsageError(
            f"{path}: pictures are written as {', '.join(_WRITERS)}, not {path.suffix or 'without suffix'}"
        )
    if settings["format"] in _OPTIONAL and not features.check(settings["format"].lower()):
        raise MissingDependency(
            f"{path}: this Pillow cannot write {settings['format']}; `pip install -U pillow`"
        )
    if metadata:
        settings = settings | metadata_settings(metadata, settings["format"], path)
    with atomic_write(path, replace) as aside:
        image.save(aside, **settings)
    return path


def decode_image(source: ImageSource, name: str | None, use):
    """Return `use(image)` of an opened picture; whatever goes wrong inside becomes one line."""
    name = name or (str(source) if isinstance(source, str | Path) else "picture")
    if isinstance(source, str | Path) and not os.path.isfile(source):
        folder = os.path.isdir(source)
        raise InvalidImage(f"{name}: {'is a folder, not an image' if folder else 'no such image'}", "missing")
    file = BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return use(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise too_large_error(name) from error
    except PermissionError as error:
        raise InvalidImage(f"{name}: not readable by this user", "unreadable") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"{name}: truncated or not an image (jpg, png, webp, bmp, gif, tiff, ppm or avif)"
        ) from error
    except LuminaError as error:
        raise InvalidImage(f"{name}: {error}", getattr(error, "code", "not_an_image")) from error
    except Exception as error:  # Pillow's readers raise almost anything on broken files
        raise InvalidImage(f"{name}: truncated or not an image ({_reason(error)})", "truncated") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InvalidImage(
            "floating-point pixels have no known range; save it with 8 or 16 bits", "floating_point"
        )
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = _to_8_bit(image)
    if image.has_transparency_data and image.mode not in ("RGBA", "LA"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode not in _PLAIN_MODES:
        image = image.convert("RGB")
    image = to_srgb(image, profile)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow itself would clip it to white."""
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

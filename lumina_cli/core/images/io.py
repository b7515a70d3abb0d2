"""Image I/O: validated decoding to upright 8-bit sRGB, and atomic writes with embedded metadata.

Files are untrusted: only the formats of SUFFIXES are decoded, larger images than MAX_PIXELS are refused, and
every failure of a decoder becomes an InvalidImage.
"""

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError, features

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.images.headers import find_excess
from lumina_cli.core.images.icc import expected_space, to_srgb
from lumina_cli.core.images.jpeg_check import find_fault
from lumina_cli.core.images.metadata.reader import read_settings
from lumina_cli.core.images.metadata.stored import metadata_settings, stored_metadata
from lumina_cli.core.images.suffixes import START, describe_content
from lumina_cli.core.images.transparency import scale_transparent_color, to_8_bit, to_mask
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.location import describe_missing
from lumina_cli.core.io.remote import AnyPath, RemotePath, to_path

MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # about 89 million; larger files are mostly decompression bombs
_OPTIONAL = ("WEBP", "AVIF")  # not part of every build of Pillow
# Pillow also supports formats that start other programs (EPS), so the list is explicit.
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
# Between one and two times the limit Pillow only warns, `decode_image` refuses; broken EXIF is ignored.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", module="PIL")
_EXIF_ORIENTATION = 0x0112

_PLAIN_MODES = ("RGB", "RGBA", "L", "LA", "CMYK")  # modes that an ICC profile can describe

ImageSource = str | AnyPath | bytes


class InvalidImage(LuminaError):
    """An image that cannot be used; `code` is the reason as one word, one for each kind of fault."""

    def __init__(self, message: str, code: str = "not_an_image"):
        super().__init__(message)
        self.code = code


def open_image(source: ImageSource, name: str | None = None, whole: bool = False) -> Image.Image:
    """Return an image as 8-bit sRGB, rotated by its EXIF orientation, composited over white.

    Only the first frame of an animation is used; images/ingest.py lists every conversion. `source` is a path
    or the bytes of a file; `name` replaces it in errors. Pillow fills the missing part of a damaged JPEG with
    grey; with `whole` such a JPEG is an error instead (takes a third longer).

    Raises:
        InvalidImage: if the image is missing, truncated, not an image, or larger than MAX_PIXELS.
    """
    image = decode_image(source, name, lambda image: _to_rgb(_upright(image)))
    if whole:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        _check_whole(data, name or (str(source) if isinstance(source, str | Path) else "image"))
    return image


def open_mask(source: ImageSource, name: str | None = None) -> Image.Image:
    """Return a mask in mode "L", rotated by its EXIF orientation.

    White areas are selected. Transparent pixels are not selected; of a layer painted in one color, the
    painted pixels are.

    Raises:
        InvalidImage: as `open_image`.
    """
    return decode_image(source, name, lambda image: to_mask(_upright(image)))


def _check_whole(data: bytes, name: str) -> None:
    """Check that a JPEG of at most MAX_PIXELS is complete, which Pillow does not.

    Raises:
        InvalidImage: if data is missing or damaged.
    """
    fault = find_fault(data)
    if fault:
        raise InvalidImage(f"{name}: damaged ({fault})", "damaged")


def open_with_format(source: ImageSource, name: str | None = None) -> tuple[str, Image.Image]:
    """Return (Pillow's name of the format: "JPEG", "PNG"..., image as `open_image` returns it)."""
    return decode_image(source, name, lambda image: (image.format, _to_rgb(_upright(image))))


class ImageInfo(NamedTuple):
    """Facts about a decoded image: size after rotation, and the color space that its profile must have."""

    format: str
    size: tuple[int, int]
    space: str
    profile: bytes | None
    notes: tuple[str, ...]


def inspect_image(data: bytes, name: str) -> ImageInfo:
    """Decode an image completely and return its facts.

    Raises:
        InvalidImage: if the image cannot be used, or a part of it is missing.
    """
    seen = decode_image(data, name, _seen)
    _check_whole(data, name)
    return seen


def _seen(image: Image.Image) -> ImageInfo:
    several = getattr(image, "is_animated", False) and image.format != "MPO"
    profile, mode = image.info.get("icc_profile"), image.mode
    size = _to_rgb(_upright(image)).size  # convert the pixels, too, which may fail
    notes = {"animated": several, "cmyk": mode == "CMYK", "16_bit": mode.startswith("I")}
    notes["alpha"] = image.has_transparency_data
    space = "GRAY" if mode.startswith("I") else expected_space(mode)
    return ImageInfo(image.format, size, space, profile, tuple(note for note, true in notes.items() if true))


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or invalid."""
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF does not affect the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """Return an image as the bytes of a file of this format: "png", "webp", "jpg" or "avif"."""
    if suffix == "png":
        return png_bytes(image)
    buffer = BytesIO()
    image.save(buffer, **_WRITERS[f".{suffix}"])
    return buffer.getvalue()


def too_large_error(name: str) -> InvalidImage:
    """Return the error for an image of more than MAX_PIXELS."""
    return InvalidImage(
        f"{name}: more than {MAX_PIXELS // 10**6} million pixels; resize it first", "too_large"
    )


def read_metadata(source: ImageSource, name: str | None = None) -> dict:
    """Return the metadata that `save_image` stored, or the settings that another program stored; else {}.

    The settings of other programs are mapped to our names as far as possible; "parameters" holds them as
    written (see images/metadata/settings.py).
    """
    ours, texts = decode_image(source, name, stored_metadata)
    return read_settings(texts) or ours or {}


def save_image(
    image: Image.Image, path: str | AnyPath, metadata: dict | None = None, replace: bool = True
) -> AnyPath:
    """Write a PNG, WebP, JPEG or AVIF, by suffix, with embedded `metadata`, whole or not at all; return its
    path.

    The metadata is stored as JSON and, if it has a "prompt", also as the text that other programs read.
    `replace` is that of `atomic_write`; a file at a URL is always replaced.

    Raises:
        UsageError: if the suffix is not supported.
        MissingDependency: if Pillow was built without the format.
        LuminaError: if the JSON does not fit into a JPEG.
        FileExistsError: if the file exists, and not `replace`.
        OSError: if writing fails.
    """
    path = to_path(path)
    settings = _WRITERS.get(path.suffix.lower())
    if settings is None:
        problem = f"unsupported file extension {path.suffix!r}" if path.suffix else "no file extension"
        raise UsageError(f"{path}: {problem}; use {', '.join(_WRITERS)}")
    if settings["format"] in _OPTIONAL and not features.check(settings["format"].lower()):
        raise MissingDependency(
            f"{path}: this Pillow cannot write {settings['format']}; `pip install -U pillow`"
        )
    if metadata:
        settings = settings | metadata_settings(metadata, settings["format"], path)
    if isinstance(path, RemotePath):
        image.save(buffer := BytesIO(), **settings)
        filesystem.write_file(path.url, buffer.getvalue())
        return path
    with atomic_write(path, replace) as aside:
        image.save(aside, **settings)
    return path


def decode_image(source: ImageSource, name: str | None, use):
    """Open an image with Pillow and return `use(image)`; any failure becomes one line.

    Raises:
        InvalidImage: if the file is missing, unreadable, truncated, not an image, or larger than MAX_PIXELS.
    """
    name = name or (str(source) if isinstance(source, str | AnyPath) else "image")
    if isinstance(source, RemotePath):
        source = source.read_bytes()
    if isinstance(source, str | Path) and not os.path.isfile(source):
        raise InvalidImage(f"{name}: {describe_missing(source)}", "missing")
    file = BytesIO(source) if isinstance(source, bytes) else source
    try:
        check_excess(source)
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            scale_transparent_color(image)
            return use(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise too_large_error(name) from error
    except PermissionError as error:
        raise InvalidImage(f"{name}: not readable by this user", "unreadable") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{name}: {describe_content(_read_start(source))}") from error
    except LuminaError as error:
        raise InvalidImage(f"{name}: {error}", getattr(error, "code", "not_an_image")) from error
    except Exception as error:  # Pillow's readers raise almost anything on broken files
        raise InvalidImage(f"{name}: truncated or not an image ({_reason(error)})", "truncated") from error


def _read_start(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source[:START]
    with open(source, "rb") as file:
        return file.read(START)


def check_excess(source: ImageSource, name: str = "") -> None:
    """Check that a file does not have so many scans, segments or chunks that decoding takes minutes.

    Raises:
        InvalidImage: if it has.
    """
    data = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
    if excess := find_excess(data):
        start = f"{name}: " if name else ""
        raise InvalidImage(f"{start}more than {excess}; decode and save it again", "too_large")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF does not affect the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InvalidImage(
            "floating-point images are not supported; convert to uint8 or uint16", "floating_point"
        )
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = to_8_bit(image)
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


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

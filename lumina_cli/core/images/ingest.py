"""Ingest policy: one treatment for image files that are not plain upright 8-bit sRGB.

A shard stores the original bytes of an image file. Readers (`open_image` of images/io.py) see the image
upright, in sRGB, composited over white, with 8 bits per channel. NOTES names each of these steps; the index
and the manifest list the steps that an image needs. They are derived from the header (images/headers.py)
without decoding if it suffices, unless `full` is set.
"""

from dataclasses import dataclass

from lumina_cli.core.images.headers import ImageHeader, read_header
from lumina_cli.core.images.icc import classify_profile
from lumina_cli.core.images.io import (
    MAX_PIXELS,
    check_excess,
    encode_image,
    inspect_image,
    open_image,
    read_orientation,
    too_large_error,
)

NOTES = {
    "rotated": "EXIF orientation: rotated when read; width and height are those after rotation",
    "icc": "the ICC profile is not sRGB: converted to sRGB when read",
    "icc_broken": "the ICC profile is unreadable or of another color space: ignored",
    "alpha": "alpha channel or transparent color: composited over white when read",
    "cmyk": "CMYK: converted to RGB when read, by the ICC profile if there is one",
    "16_bit": "16 bits per channel: scaled to 8 when read",
    "animated": "several frames: the first one is used",
    "suffix": "the suffix of the file names another format: the member has the right one",
    "encoded": "re-encoded by --encode, with all of the above applied",
}
SUFFIX_OF = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "DIB": "bmp", "GIF": "gif",
    "TIFF": "tif", "PPM": "ppm", "AVIF": "avif",
}  # fmt: skip
_SAME = {"jpeg": "jpg", "tiff": "tif"}
ENCODINGS = ("png", "webp", "jpg", "avif")


@dataclass(frozen=True)
class IngestedImage:
    """An image file for a shard; width and height in pixels, after rotation; notes are keys of NOTES."""

    data: bytes
    suffix: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def ingest_image(data: bytes, name: str, full: bool = False, encode: str | None = None) -> IngestedImage:
    """Examine an image file and return it for a shard.

    With `full` the image is decoded once; otherwise only if its header does not prove that it is complete.
    `encode`, one of ENCODINGS, re-encodes it unless it already has that format and needs no step of the
    policy.

    Raises:
        InvalidImage: if the image cannot be used.
    """
    check_excess(data, name)
    head = read_header(data)
    seen = inspect_image(data, name) if head is None or full else None  # decodes, and raises InvalidImage
    if head is None:
        head = ImageHeader(seen.format, *seen.size, seen.space, seen.profile, True, set(seen.notes))
    if head.width * head.height > MAX_PIXELS:
        raise too_large_error(name)
    turn = read_orientation(data) if head.turned else 1
    stored = (head.height, head.width) if turn > 4 else (head.width, head.height)
    width, height = seen.size if seen else stored
    notes = head.notes | ({"rotated"} if turn > 1 else set())
    if head.profile:
        notes |= {classify_profile(head.profile, head.space)} - {"srgb"}
    suffix = SUFFIX_OF[head.format]
    if encode and (encode != suffix or notes - {"icc_broken"}):
        image = open_image(data, name, whole=seen is None)
        return IngestedImage(encode_image(image, encode), encode, *image.size, _sorted(notes | {"encoded"}))
    return IngestedImage(data, suffix, width, height, _sorted(notes | _misnamed(name, suffix)))


def _misnamed(name: str, suffix: str) -> set[str]:
    dot, _, said = name.rpartition(".")
    said = said.lower()
    known = said in SUFFIX_OF.values() or said in _SAME
    return {"suffix"} if dot and known and _SAME.get(said, said) != suffix else set()


def _sorted(notes: set[str]) -> tuple[str, ...]:
    return tuple(note for note in NOTES if note in notes)

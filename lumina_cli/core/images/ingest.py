"""What becomes of a picture that is more, or less, than upright 8-bit sRGB: one policy for all verbs.

A shard holds a picture's own bytes. Whoever reads it (images/io.py) sees it upright, in sRGB, over
white, with 8 bits a channel; NOTES names each of these steps, and the index and the manifest say which of
them a picture needs. Nothing is decoded for that where the parts of the file tell (images/headers.py), unless
`full` asks for it.
"""

from dataclasses import dataclass

from lumina_cli.core.images.headers import ImageHeader, read_header
from lumina_cli.core.images.icc import classify_profile
from lumina_cli.core.images.io import (
    MAX_PIXELS,
    encode_image,
    inspect_image,
    open_image,
    read_orientation,
    too_large_error,
)

NOTES = {
    "rotated": "EXIF says how to hold it: it is turned when it is read; width and height are as seen",
    "icc": "its profile is not sRGB: converted to sRGB when it is read",
    "icc_broken": "its profile cannot be read or is of other colours: ignored",
    "alpha": "it has an alpha channel or a transparent colour: laid over white when it is read",
    "cmyk": "four inks: converted to RGB when it is read, by its profile if it has one",
    "16_bit": "16 bits a channel: scaled to 8 when it is read",
    "animated": "several frames: the first one is the picture",
    "suffix": "its name promises another format than it is: the member has the true suffix",
    "encoded": "written anew as --encode asked, with all of the above done",
}
SUFFIX_OF = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "DIB": "bmp", "GIF": "gif",
    "TIFF": "tif", "PPM": "ppm", "AVIF": "avif",
}  # fmt: skip
_SAME = {"jpeg": "jpg", "tiff": "tif"}
ENCODINGS = ("png", "webp", "jpg", "avif")


@dataclass(frozen=True)
class IngestedImage:
    """A picture's bytes, as they go into a shard, and what is known of them; width and height as seen."""

    data: bytes
    suffix: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def ingest_image(data: bytes, name: str, full: bool = False, encode: str | None = None) -> IngestedImage:
    """Return a picture file examined; BadPicture where it cannot be used.

    With `full` it is decoded once; without, only where its parts do not tell that it is whole. `encode`, one
    of ENCODINGS, writes it anew unless it is of that format and needs no step of the policy.
    """
    head = read_header(data)
    seen = inspect_image(data, name) if head is None or full else None  # decodes, and raises what is wrong
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
        picture = open_image(data, name, whole=seen is None)
        return IngestedImage(
            encode_image(picture, encode), encode, *picture.size, _sorted(notes | {"encoded"})
        )
    return IngestedImage(data, suffix, width, height, _sorted(notes | _misnamed(name, suffix)))


def _misnamed(name: str, suffix: str) -> set[str]:
    dot, _, said = name.rpartition(".")
    said = said.lower()
    known = said in SUFFIX_OF.values() or said in _SAME
    return {"suffix"} if dot and known and _SAME.get(said, said) != suffix else set()


def _sorted(notes: set[str]) -> tuple[str, ...]:
    return tuple(note for note in NOTES if note in notes)

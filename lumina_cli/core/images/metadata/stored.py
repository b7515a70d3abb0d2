"""Metadata in image files: the JSON record of lumina, and the infotext that other programs read.

Both are stored side by side: the JSON is complete, the infotext (`infotext.py`) can be read by many
other programs. In a PNG both are text chunks ("lumina", "parameters"); other formats hold the JSON as the
EXIF image description and the text as the EXIF user comment.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image, PngImagePlugin

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.metadata.comments import decode_comment
from lumina_cli.core.images.metadata.infotext import write_infotext
from lumina_cli.core.images.metadata.reader import CHUNKS, LONGEST, read_json
from lumina_cli.core.limits import InvalidJSON, check_json_value, parse_json

_METADATA_KEY, _PARAMETERS_KEY = "lumina", "parameters"
_EXIF_DESCRIPTION, _EXIF_IFD, _EXIF_COMMENT = 0x010E, 0x8769, 0x9286
_EXIF_TEXTS = (_EXIF_DESCRIPTION, 0x010F, 0x0110)  # ComfyUI stores its graph as make or model of the camera
_JPEG_EXIF = 65_000  # bytes; a JPEG segment holds at most 64 KiB
_OWN = ("plan", "grid", "attention", "version", "system")  # keys of our JSON, at least one of them


def metadata_settings(metadata: dict, format: str, path: Path) -> dict:
    """Return the keyword arguments of Pillow's `save` that store `metadata` in a file of this format.

    Raises:
        LuminaError: if the JSON exceeds the EXIF segment of a JPEG.
    """
    parameters = write_infotext(metadata)
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(_METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
        if parameters:
            info.add_text(_PARAMETERS_KEY, parameters)  # Pillow switches to iTXt if Latin-1 is not enough
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = json.dumps(metadata)  # ASCII, the only encoding of this EXIF field
    if format == "JPEG" and len(exif.tobytes()) > _JPEG_EXIF:
        raise LuminaError(f"{path}: metadata exceeds JPEG's 64 KiB limit; use --format png, webp or avif")
    if parameters:
        comment = exif.get_ifd(_EXIF_IFD)
        comment[_EXIF_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
        if format == "JPEG" and len(exif.tobytes()) > _JPEG_EXIF:
            del comment[_EXIF_COMMENT]  # the JSON has the same content and more
    return {"exif": exif}


def stored_metadata(image: Image.Image) -> tuple[dict | None, list[str]]:
    """Return (our metadata, or None; texts that may hold settings of other programs) of an opened image."""
    exif = image.getexif()
    ours = read_json(image.info.get(_METADATA_KEY) or exif.get(_EXIF_DESCRIPTION))
    if ours is not None and (_METADATA_KEY in image.info or any(key in ours for key in _OWN)):
        return ours, []
    texts = list(dict.fromkeys(filter(None, map(decode_comment, _foreign_fields(image, exif)))))
    return ours, texts


def find_metadata_fault(image: Image.Image) -> str | None:
    """Return the setting in our JSON that is beyond the limits of JSON, with the reason; None without any."""
    text = image.info.get(_METADATA_KEY)
    if not isinstance(text, str) or len(text) > LONGEST:
        return None
    try:
        parse_json(text)
    except ValueError as error:
        with suppress(ValueError, RecursionError, AttributeError):
            for name, value in json.loads(text).items():
                try:
                    check_json_value(value)
                except InvalidJSON as fault:
                    return f"{name}: {fault}"
        return " ".join(str(error).split())
    return None


def _foreign_fields(image: Image.Image, exif: Image.Exif) -> Iterator[str | bytes | None]:
    chunks = {name.lower(): value for name, value in image.info.items() if isinstance(name, str)}
    for name in CHUNKS:
        if isinstance(value := chunks.get(name), str | bytes):
            yield _repair(value) if isinstance(value, str) else value
    comment = exif.get_ifd(_EXIF_IFD).get(_EXIF_COMMENT)
    yield comment if isinstance(comment, str | bytes) else None
    for field in _EXIF_TEXTS:
        if isinstance(value := exif.get(field), str | bytes):
            yield value


def _repair(text: str) -> str:
    """Return the text of a Latin-1 chunk to which a program wrote UTF-8."""
    try:
        return text if text.isascii() else text.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text

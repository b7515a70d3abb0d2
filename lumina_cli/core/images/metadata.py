"""Metadata in image files: the JSON record of lumina, and the text block of AUTOMATIC1111's web UI.

Both are stored side by side: the JSON is complete, the text can be read by many other programs. In a PNG both
are text chunks ("lumina", "parameters"); other formats hold the JSON as the EXIF image description and the
text as the EXIF user comment. The text block:

    a red car left of a blue ball
    Negative prompt: blurry
    Steps: 17, Sampler: midpoint, CFG scale: 4, Seed: 7, Size: 128x128, Model: nano

The prompt may have several lines, and so may the negative prompt after its label. The last line holds the
settings; a value with a comma or a colon is quoted as JSON.
"""

import json
import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from lumina_cli.core.errors import LuminaError

_METADATA_KEY, _PARAMETERS_KEY = "lumina", "parameters"
_EXIF_DESCRIPTION, _EXIF_IFD, _EXIF_COMMENT = 0x010E, 0x8769, 0x9286
_ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "latin-1"}  # prefix of an EXIF comment -> encoding
_JPEG_EXIF = 65_000  # bytes; a JPEG segment holds at most 64 KiB
NEGATIVE = "Negative prompt: "
# other programs' names of the solvers that implement the same method here
_SAMPLERS = {
    "euler": "euler",
    "heun": "heun",
    "dpm++ 2m": "dpm",
    "dpmpp_2m": "dpm",
    "unipc": "unipc",
    "uni_pc": "unipc",
    "midpoint": "midpoint",
    "rk4": "rk4",
    "dpm": "dpm",
}
_SETTING = re.compile(r'\s*([^:,"]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"\s*(\d+)\s*[x×]\s*(\d+)\s*")
_FEWEST = 2  # settings in a last line that is not part of the prompt


def write_parameters(metadata: dict) -> str | None:
    """Return the text block for the metadata of an image, or None if it has no prompt."""
    prompt, plan = metadata.get("prompt"), metadata.get("plan") or {}
    if not isinstance(prompt, str):
        return None
    settings = {
        "Steps": plan.get("steps"),
        "Sampler": plan.get("solver"),
        "CFG scale": plan.get("guidance"),
        "Seed": metadata.get("seed"),
        "Size": _format_size(metadata.get("size")),
        "Model hash": metadata.get("weights"),
        "Model": metadata.get("model"),
        "Shift": plan.get("shift"),
        "Image number": metadata.get("number") or None,
        "Version": metadata.get("version") and f"lumina {metadata['version']}",
    }
    negative = metadata.get("negative")
    lines = [prompt, *([NEGATIVE + negative] if negative else [])]
    found = [f"{name}: {_quote(value)}" for name, value in settings.items() if value is not None]
    return "\n".join([*lines, ", ".join(found)])


def read_parameters(text: str) -> dict:
    """Return the content of such a text block under the names of our own metadata; {} for any other text.

    The result has "prompt" and, if present, "negative", "seed", "size", "model" and "plan" (with "steps",
    "solver", "guidance" and "shift"); "parameters" holds every setting as it was written.
    """
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    settings = _parse_settings(lines[-1])
    if settings is None:
        return {}
    prompt, mark, negative = "\n".join(lines[:-1]).partition("\n" + NEGATIVE.strip())
    if not mark and prompt.startswith(NEGATIVE.strip()):
        prompt, negative = "", prompt.removeprefix(NEGATIVE.strip())
    size = _SIZE.fullmatch(settings.get("Size", ""))
    plan = {
        "steps": _parse_number(settings.get("Steps"), int),
        "solver": _parse_solver(settings.get("Sampler")),
        "guidance": _parse_number(settings.get("CFG scale"), float),
        "shift": _parse_number(settings.get("Shift"), float),
    }
    found = {
        "prompt": prompt.strip(),
        "negative": negative.strip() or None,
        "seed": _parse_number(settings.get("Seed"), int),
        "size": [int(size[1]), int(size[2])] if size else None,
        "model": settings.get("Model"),
        "plan": {name: value for name, value in plan.items() if value is not None},
        "parameters": settings,
    }
    return {name: value for name, value in found.items() if value is not None}


def _parse_settings(line: str) -> dict[str, str] | None:
    """Return the settings of a last line, or None if it is not a line of settings."""
    found, end = {}, 0
    while end < len(line):
        match = _SETTING.match(line, end)
        if match is None:
            return None
        found[match[1].strip()], end = _unquote(match[2].strip()), match.end()
    found = {name: value for name, value in found.items() if value}
    return found if len(found) >= _FEWEST and {"Steps", "Seed", "Sampler"} & set(found) else None


def _parse_solver(name: str | None) -> str | None:
    words = (name or "").lower().split()
    while words and words[-1] in ("karras", "simple", "normal", "beta", "automatic", "exponential"):
        words.pop()  # the name of a noise schedule, which a plan defines on its own
    return _SAMPLERS.get(" ".join(words))


def _format_size(size) -> str | None:
    return "{}x{}".format(*size) if isinstance(size, list | tuple) and len(size) == 2 else None


def _parse_number(text: str | None, kind: type):
    try:
        return kind(text) if text is not None else None
    except ValueError:
        return None


def _quote(value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def _unquote(text: str) -> str:
    try:
        return json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text


def metadata_settings(metadata: dict, format: str, path: Path) -> dict:
    """Return the keyword arguments of Pillow's `save` that store `metadata` in a file of this format.

    Raises:
        LuminaError: if the JSON exceeds the EXIF segment of a JPEG.
    """
    parameters = write_parameters(metadata)
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


def stored_texts(image: Image.Image) -> tuple[str | None, str | None]:
    """Return (our JSON, the text block of parameters) of an opened image, each None if it is absent."""
    exif = image.getexif()
    comment = exif.get_ifd(_EXIF_IFD).get(_EXIF_COMMENT)
    parameters = image.info.get(_PARAMETERS_KEY) or _decode_comment(comment)
    ours = image.info.get(_METADATA_KEY) or exif.get(_EXIF_DESCRIPTION)
    return ours, parameters if isinstance(parameters, str) else None


def _decode_comment(data: bytes | str | None) -> str | None:
    """Decode an EXIF comment; some programs write its UTF-16 in little-endian order."""
    if not isinstance(data, bytes):
        return data
    code = _ENCODINGS.get(data[:8])
    if code == "utf-16-be" and data[8:].count(0) and data[9:10] == b"\0":
        code = "utf-16-le"
    return data[8:].decode(code, "replace") if code else data.decode("utf-8", "replace").strip("\0")

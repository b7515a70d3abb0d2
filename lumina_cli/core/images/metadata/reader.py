"""Reads the settings of other programs from the texts in an image, in any of their formats."""

from collections.abc import Iterable

from lumina_cli.core.images.metadata.comfyui import is_graph, read_graph
from lumina_cli.core.images.metadata.infotext import read_infotext
from lumina_cli.core.images.metadata.records import read_record
from lumina_cli.core.limits import parse_json

# text chunks of a PNG file, in lower case, in which programs store their settings
CHUNKS = (
    "parameters", "invokeai_metadata", "sd-metadata", "prompt", "generation_data", "comment", "usercomment",
    "description", "fooocus", "dream",
)  # fmt: skip
_PREFIXES = ("prompt:", "Prompt:")  # of ComfyUI's graph in EXIF
LONGEST = 16 * 2**20  # characters of a JSON text


def read_json(text: object) -> dict | None:
    """Return the JSON object in a text, or None."""
    if not isinstance(text, str) or len(text) > LONGEST:
        return None
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_settings(texts: Iterable[str]) -> dict:
    """Return the settings in the first text that has some, see `build_metadata`; {} without any."""
    for text in texts:
        record = read_json(text)
        if record is None:
            found = read_infotext(text)
        else:
            found = read_graph(record) if is_graph(record) else read_record(record)
        if found:
            return found
    return {}

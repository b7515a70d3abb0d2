"""The infotext of AUTOMATIC1111's web UI, Forge, SD.Next and many others, which is also written by us:

    a red car left of a blue ball
    Negative prompt: blurry
    Steps: 17, Sampler: midpoint, CFG scale: 4, Seed: 7, Size: 128x128, Model: nano

The prompt may have several lines, and so may the negative prompt after its label. The line of settings is
usually the last; extensions add lines such as "Template: ..." after it. A value with a comma or a colon is
quoted as JSON, or is a JSON object or array.
"""

import json
import re

from lumina_cli.core.images.metadata.settings import build_metadata

NEGATIVE = "Negative prompt: "
_MARK = re.compile(r"(?:^|,\s*|\s)(?:Steps|Seed|Sampler)\s*:")
_NAME = re.compile(r"[\s,]*([^\s:,\"{}\[\]][^:,\"{}\[\]]*?)\s*:\s*")
_PLAIN = re.compile(r"[^,]*")
_UNLABELLED = re.compile(r",[^,:]*(?=,|$)")  # text after a comma that is not a setting
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_REST = re.compile(r"[^,]*,?")
_EXTRA = re.compile(r"([A-Z][\w -]{0,40}): ?(.*)", re.DOTALL)
_SHORT = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Shift")  # settings without a comma
_FEWEST = 2  # settings in a line that is not part of the prompt
_DECODER = json.JSONDecoder()


def write_infotext(metadata: dict) -> str | None:
    """Return the infotext for the metadata of an image, or None if it has no prompt."""
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


def read_infotext(text: str) -> dict:
    """Return the content of an infotext, see `build_metadata`; {} for any other text."""
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    marked = (number for number in range(len(lines) - 1, -1, -1) if _MARK.search(lines[number]))
    place, settings = next(
        ((number, found) for number in marked if (found := _parse(lines[number]))), (0, {})
    )
    if not settings:
        return {}
    prompt, mark, negative = "\n".join(lines[:place]).partition("\n" + NEGATIVE.strip())
    if not mark and prompt.startswith(NEGATIVE.strip()):
        prompt, negative = "", prompt.removeprefix(NEGATIVE.strip())
    named = {
        "negative": negative,
        "seed": settings.get("Seed"),
        "size": settings.get("Size"),
        "model": settings.get("Model"),
        "steps": settings.get("Steps"),
        "solver": settings.get("Sampler"),
        "guidance": settings.get("CFG scale"),
        "shift": settings.get("Shift"),
    }
    return build_metadata(prompt, named, settings | _parse_extra(lines[place + 1 :]))


def _parse(line: str) -> dict[str, str]:
    """Return the settings of a line, or {} if it is not a line of settings; unreadable parts are skipped."""
    found: dict[str, str] = {}
    end = 0
    while end < len(line):
        name = _NAME.match(line, end)
        if name is None:
            end = _REST.match(line, end).end()  # type: ignore[union-attr]
            continue
        value, end = _parse_value(line, name.end(), name[1] not in _SHORT)
        if value:
            found[name[1]] = value
    return found if len(found) >= _FEWEST and {"Steps", "Seed", "Sampler"} & set(found) else {}


def _parse_value(line: str, start: int, commas: bool) -> tuple[str, int]:
    """Return the value that starts at `start`, unquoted, and the start of the next setting.

    `commas` is whether the value may contain commas although it is not quoted.
    """
    first = line[start : start + 1]
    if first and first in '"{[':
        try:
            value, end = _DECODER.raw_decode(line, start)
        except (ValueError, RecursionError):  # damaged JSON: quoted text, or up to the next setting
            quoted = _QUOTED.match(line, start)
            value, end = (quoted[0][1:-1], quoted.end()) if quoted else (None, start)
        if value is not None:
            text = value if isinstance(value, str) else line[start:end]
            return text, _REST.match(line, end).end()  # type: ignore[union-attr]
    end = _PLAIN.match(line, start).end()  # type: ignore[union-attr]
    while commas and (more := _UNLABELLED.match(line, end)) and more[0].strip(", "):
        end = more.end()
    return line[start:end].strip(), end


def _parse_extra(lines: list[str]) -> dict[str, str]:
    """Return the lines after the settings by their labels; a line without one continues the previous."""
    found: dict[str, str] = {}
    label = "Template"
    for line in lines:
        named = _EXTRA.match(line)
        label, text = (named[1], named[2]) if named else (label, line)
        found[label] = f"{found[label]}\n{text}" if label in found else text
    return {label: text.strip() for label, text in found.items() if text.strip()}


def _format_size(size) -> str | None:
    return "{}x{}".format(*size) if isinstance(size, list | tuple) and len(size) == 2 else None


def _quote(value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text

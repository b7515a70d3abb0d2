"""Generation parameters as text: the block that AUTOMATIC1111's web UI writes and that many programs read.

    a red car left of a blue ball
    Negative prompt: blurry
    Steps: 17, Sampler: midpoint, CFG scale: 4, Seed: 7, Size: 128x128, Model: nano

The prompt may have several lines; so may the negative one, from its mark on. The last line holds the
settings; a value with a comma or a colon is quoted as JSON.
"""

import json
import re

NEGATIVE = "Negative prompt: "
# what other programs call the solvers, where ours follow the same rule
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
_FEWEST = 2  # settings that make a last line one of settings, not of the prompt


def write_parameters(metadata: dict) -> str | None:
    """Return the text for a picture's metadata, or None where it has no prompt."""
    prompt, plan = metadata.get("prompt"), metadata.get("plan") or {}
    if not isinstance(prompt, str):
        return None
    settings = {
        "Steps": plan.get("steps"),
        "Sampler": plan.get("solver"),
        "CFG scale": plan.get("guidance"),
        "Seed": metadata.get("seed"),
        "Size": _times(metadata.get("size")),
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
    """Return what such a text says, by the names of our own metadata; {} where it is another text.

    "prompt" and, as far as they are there, "negative", "seed", "size", "model" and "plan" with "steps",
    "solver", "guidance" and "shift"; every setting as it was written is in "parameters".
    """
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    settings = _settings(lines[-1])
    if settings is None:
        return {}
    prompt, mark, negative = "\n".join(lines[:-1]).partition("\n" + NEGATIVE.strip())
    if not mark and prompt.startswith(NEGATIVE.strip()):
        prompt, negative = "", prompt.removeprefix(NEGATIVE.strip())
    size = _SIZE.fullmatch(settings.get("Size", ""))
    plan = {
        "steps": _number(settings.get("Steps"), int),
        "solver": _solver(settings.get("Sampler")),
        "guidance": _number(settings.get("CFG scale"), float),
        "shift": _number(settings.get("Shift"), float),
    }
    found = {
        "prompt": prompt.strip(),
        "negative": negative.strip() or None,
        "seed": _number(settings.get("Seed"), int),
        "size": [int(size[1]), int(size[2])] if size else None,
        "model": settings.get("Model"),
        "plan": {name: value for name, value in plan.items() if value is not None},
        "parameters": settings,
    }
    return {name: value for name, value in found.items() if value is not None}


def _settings(line: str) -> dict[str, str] | None:
    """The settings of a last line, or None where it is no such line."""
    found, end = {}, 0
    while end < len(line):
        match = _SETTING.match(line, end)
        if match is None:
            return None
        found[match[1].strip()], end = _unquote(match[2].strip()), match.end()
    found = {name: value for name, value in found.items() if value}
    return found if len(found) >= _FEWEST and {"Steps", "Seed", "Sampler"} & set(found) else None


def _solver(name: str | None) -> str | None:
    words = (name or "").lower().split()
    while words and words[-1] in ("karras", "simple", "normal", "beta", "automatic", "exponential"):
        words.pop()  # their schedule of noise; a plan has its own
    return _SAMPLERS.get(" ".join(words))


def _times(size) -> str | None:
    return "{}x{}".format(*size) if isinstance(size, list | tuple) and len(size) == 2 else None


def _number(text: str | None, kind: type):
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

"""JSON records of SwarmUI, Fooocus, InvokeAI, NovelAI and others: flat objects of settings."""

import re
from collections.abc import Mapping
from typing import Any

from lumina_cli.core.images.metadata.settings import build_metadata

_TEXT = 2000  # characters of a setting that are kept for people
# our names by the names of other programs, in lower case without punctuation
_NAMES = {
    "prompt": ("prompt", "positiveprompt", "positive", "rawprompt", "c"),
    "negative": ("negativeprompt", "negative", "uc"),
    "seed": ("seed", "noiseseed"),
    "steps": ("steps", "numinferencesteps", "numsteps"),
    "solver": ("sampler", "samplername", "scheduler"),
    "guidance": ("cfgscale", "guidancescale", "cfg", "scale", "guidance"),
    "shift": ("sigmashift", "shift"),
    "size": ("resolution", "size"),
    "width": ("width",),
    "height": ("height",),
    "model": ("model", "basemodel", "modelname", "usestablediffusionmodel"),
}


def read_record(record: Mapping[str, Any]) -> dict:
    """Return the content of a JSON record, see `build_metadata`; {} if it has no generation settings."""
    program, fields = _find_fields(record)
    named = {re.sub(r"[\W_]", "", str(name)).lower(): value for name, value in fields.items()}
    found = {
        ours: next((named[name] for name in theirs if named.get(name) not in (None, "")), None)
        for ours, theirs in _NAMES.items()
    }
    prompt = _join_prompt(found.pop("prompt"))
    width, height = found.pop("width"), found.pop("height")
    if width is not None and height is not None:
        found["size"] = [width, height]
    if prompt is None or (
        program is None and not any(found[name] for name in ("steps", "solver", "guidance"))
    ):
        return {}
    written = {str(name): str(value)[:_TEXT] for name, value in fields.items() if value not in (None, "")}
    return build_metadata(prompt, found, written, program)


def _find_fields(record: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the program's name, if it can be recognized, and the object that holds the settings."""
    swarm = record.get("sui_image_params")
    if isinstance(swarm, Mapping):
        return "SwarmUI", swarm
    if isinstance(record.get("image"), Mapping) and "prompt" in record["image"]:
        return "InvokeAI", {"model": record.get("model_weights") or record.get("model"), **record["image"]}
    names = {str(name).lower() for name in record}
    if {"app_version", "generation_mode"} & names and "positive_prompt" in names:
        return "InvokeAI", record
    if "metadata_scheme" in names or {"performance", "sharpness"} <= names:
        return "Fooocus", record
    return ("NovelAI" if {"uc", "prompt"} <= names else None), record


def _join_prompt(value: Any) -> str | None:
    """Return a prompt; InvokeAI once stored a list of parts with weights."""
    if isinstance(value, list):
        parts = [part.get("prompt") if isinstance(part, Mapping) else part for part in value]
        return ", ".join(part for part in parts if isinstance(part, str)) if parts else None
    return value if isinstance(value, str) else None

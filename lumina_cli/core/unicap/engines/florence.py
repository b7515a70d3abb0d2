"""Florence-2: task tokens instead of instructions, one per level, in English."""

import re

from lumina_cli.core.unicap.checks.phrases import BOILERPLATE

TASKS = {
    "detailed": "<MORE_DETAILED_CAPTION>",
    "medium": "<DETAILED_CAPTION>",
    "short": "<CAPTION>",
    "tags": "<OD>",
}
_SPECIAL_TOKENS = re.compile(r"</?(?:s|pad|unk|mask)>")
_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")


def read(text: str, level: str) -> str:
    """Extract the caption from a decoded answer that includes special tokens.

    Detected objects have the form "car<loc_1><loc_2>..."; the distinct names become tags. Florence-2 starts
    most captions with "The image shows", which is removed here.
    """
    text = _SPECIAL_TOKENS.sub("", text).strip()
    if level == "tags":
        return ", ".join(dict.fromkeys(name.strip() for name in _LOCATIONS.split(text) if name.strip()))
    text = _LOCATIONS.sub("", text)
    opening = BOILERPLATE.match(text)
    text = text[opening.end() :].lstrip(" ,") if opening else text
    return text[:1].upper() + text[1:]

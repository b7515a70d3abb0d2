"""Florence-2 follows no instructions but knows tasks, in English: one for each level."""

import re

from lumina_cli.core.unicap.checks.phrases import BOILERPLATE

TASKS = {
    "detailed": "<MORE_DETAILED_CAPTION>",
    "medium": "<DETAILED_CAPTION>",
    "short": "<CAPTION>",
    "tags": "<OD>",
}
_SPECIAL = re.compile(r"</?(?:s|pad|unk|mask)>")
_PLACES = re.compile(r"(?:<loc_\d+>)+")


def read(text: str, level: str) -> str:
    """Return the caption of an answer as the tokenizer decodes it, special tokens in it.

    Found objects come as "car<loc_1><loc_2>...": each name once is a tag. Florence-2 opens most captions with
    "The image shows" and cannot be told not to, so that is cut off here.
    """
    text = _SPECIAL.sub("", text).strip()
    if level == "tags":
        return ", ".join(dict.fromkeys(name.strip() for name in _PLACES.split(text) if name.strip()))
    text = _PLACES.sub("", text)
    opening = BOILERPLATE.match(text)
    text = text[opening.end() :].lstrip(" ,") if opening else text
    return text[:1].upper() + text[1:]

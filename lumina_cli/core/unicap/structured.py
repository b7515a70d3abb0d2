"""Other forms of questions: a caption rewritten from a detailed one, and several captions as JSON."""

import json
import re
from collections.abc import Sequence
from typing import Any

from lumina_cli.core.limits import parse_json
from lumina_cli.core.unicap.checks.chat_tokens import strip_chat_tokens
from lumina_cli.core.unicap.checks.languages import NAMES
from lumina_cli.core.unicap.prompts import MAX_TOKENS, instruction

CaptionType = tuple[str, str]  # language and level

_KINDS = {
    "detailed": "a detailed caption, one flowing paragraph that keeps every detail",
    "medium": "a caption of two or three sentences: style, main objects, their attributes, arrangement",
    "short": "a caption of one short sentence",
    "tags": "tags separated by commas: style, objects, attributes, relations",
}
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)


def rewriting(text: str, level: str, lang: str) -> str:
    """Return the question for a caption of a level and language that is derived from the caption `text`."""
    return (
        f"Here is a caption of a picture:\n\n{text}\n\nWrite from it, in {NAMES[lang]}, {_KINDS[level]}. "
        "Add nothing that it does not say. Answer with the caption alone."
    )


def joint_prompt(pairs: Sequence[CaptionType], domain: str, text: str | None = None) -> str:
    """Return the question for several captions as one JSON object, from the image or from `text`."""
    wanted = "\n".join(
        f"- {json.dumps([lang, level])}: {_KINDS[level]}, in {NAMES[lang]}" for lang, level in pairs
    )
    source = f"Here is a caption of a picture:\n\n{text}\n\nWrite from it, adding nothing:" if text else (
        f"{instruction('detailed', 'en', domain)} Then say the same at other lengths and in other languages:"
    )  # fmt: skip
    shape = json.dumps({lang: {level: "..." for one, level in pairs if one == lang} for lang, _ in pairs})
    return f"{source}\n{wanted}\nAnswer with one JSON object of this shape and nothing else: {shape}"


def schema(pairs: Sequence[CaptionType]) -> dict[str, Any]:
    """Return the JSON schema of an answer to `joint_prompt`."""
    langs = {lang: [level for one, level in pairs if one == lang] for lang, _ in pairs}
    return _object(
        {lang: _object({level: {"type": "string"} for level in levels}) for lang, levels in langs.items()}
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def max_answer_tokens(pairs: Sequence[CaptionType]) -> int:
    """Return the token limit of an answer to `joint_prompt`."""
    return 32 + sum(MAX_TOKENS[level] + 16 for _, level in pairs)


def parse_captions(text: str, pairs: Sequence[CaptionType]) -> dict[CaptionType, str]:
    """Return the captions in an answer to `joint_prompt`, without missing or invalid ones."""
    text = strip_chat_tokens(text)
    fenced = _FENCED.search(text)
    text = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    found = found if isinstance(found, dict) else {}
    captions = {}
    for lang, level in pairs:
        levels = found.get(lang)
        caption = levels.get(level) if isinstance(levels, dict) else None
        if isinstance(caption, list) and all(isinstance(one, str) for one in caption):
            caption = ", ".join(caption)  # tags, which models often write as a list
        if isinstance(caption, str):
            captions[lang, level] = caption
    return captions

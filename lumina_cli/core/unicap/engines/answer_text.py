"""The text in a message of an endpoint, in each of the forms that endpoints send."""

from typing import Any

from pydantic import BaseModel

_TEXT_TYPES = ("text", "output_text", None)  # parts of the answer; others are reasoning or tool calls


def message_text(content: Any) -> str | None:
    """Return the text of the content of a message: a string, a part {"text": ...}, or a list of these.

    Parts of other types, such as "thinking", are omitted. Without any text, the result is None.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, BaseModel):
        content = content.model_dump()
    if isinstance(content, dict):
        found = content.get("text", content.get("content")) if content.get("type") in _TEXT_TYPES else None
        found = found.get("value") if isinstance(found, dict) else found
        return found if isinstance(found, str) else None
    if isinstance(content, list):
        texts = [text for part in content if (text := message_text(part)) is not None]
        return _join(texts) if texts else None
    return None


def _join(texts: list[str]) -> str:
    """Join parts, with a space where two words would touch."""
    joined = texts[0]
    for text in texts[1:]:
        touching = joined[-1:].isalnum() and text[:1].isalnum() and (joined + text).isascii()
        joined += f" {text}" if touching else text
    return joined

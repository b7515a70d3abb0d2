"""The answer in a response of an endpoint, in each of the forms that endpoints send."""

import json
from typing import Any

from pydantic import BaseModel

from lumina_cli.core.limits import InvalidJSON, is_text, parse_json
from lumina_cli.core.secrets import mask_known, mask_secrets
from lumina_cli.core.unicap.protocol import Answer

MAX_CHARACTERS = 100_000  # of an answer
MAX_TOKENS = 1 << 23  # of an answer; a larger number is not a count

_TEXT_TYPES = ("text", "output_text", None)  # parts of the answer; others are reasoning or tool calls
_NO_TEXT = "no text in the endpoint's answer"
_KINDS = {str: "a JSON text", list: "a JSON array", type(None): "null", bool: "a JSON boolean"}


class UnreadableAnswer(ValueError):
    """A response that is not a completion, with the reason."""

    def __init__(self, reason: str, what: str = "unreadable answer"):
        super().__init__(f"{what}: {reason}")


def read_completion(body: bytes) -> Answer:
    """Return the answer in the body of a response; endpoints omit almost any of its fields.

    Raises:
        UnreadableAnswer: if it is not a completion with text.
    """
    found = _parse_object(body)
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        if error := found.get("error"):
            raise UnreadableAnswer(_describe(error), "error in the endpoint's answer")
        raise UnreadableAnswer("a JSON object without choices[0].message", _NO_TEXT)
    if refusal := message.get("refusal"):
        return Answer("", True, error=f"refused by the model: {shorten_line(refusal)}")
    if (text := message_text(message.get("content"))) is None:
        raise UnreadableAnswer("its message is without content", _NO_TEXT)
    if len(text) > MAX_CHARACTERS:
        raise UnreadableAnswer(f"more than {MAX_CHARACTERS:,} characters")
    if not is_text(text):
        raise UnreadableAnswer("not valid UTF-8 text")
    text, finish_reason = mask_known(text), choice.get("finish_reason")
    if finish_reason == "content_filter":
        return Answer(text, True, error="refused by the endpoint: content filter")
    usage = found.get("usage")
    tokens = _count(usage.get("completion_tokens")) if isinstance(usage, dict) else 0
    return Answer(text.strip(), finish_reason != "length", tokens)


def _parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body, or raise UnreadableAnswer with what it is instead."""
    start = body[:100].lstrip()
    if not start:
        raise UnreadableAnswer("an empty body")
    try:
        found = parse_json(body)
    except InvalidJSON as error:
        raise UnreadableAnswer(error.msg) from None
    except UnicodeDecodeError:
        raise UnreadableAnswer("not JSON, and not UTF-8 text") from None
    except json.JSONDecodeError as error:
        if start.startswith(b"<"):
            raise UnreadableAnswer("HTML or XML, not JSON") from None
        if start.startswith((b"data:", b"event:", b":")):
            raise UnreadableAnswer("a stream of events, which was not requested, not JSON") from None
        raise UnreadableAnswer(f"not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(found, dict):
        raise UnreadableAnswer(f"{_KINDS.get(type(found), 'a JSON number')}, not a JSON object")
    return found


def _describe(error: Any) -> str:
    """Return the message of an error that an endpoint sends with status 200."""
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    return shorten_line(error)


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for anything else that an endpoint sends."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < MAX_TOKENS else 0


def shorten_line(text: Any) -> str:
    """Return text of an endpoint as one short line without secrets."""
    text = mask_secrets(" ".join(str(text)[:10_000].split()))
    return text if len(text) <= 200 else text[:199] + "…"


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

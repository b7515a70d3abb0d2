"""Removal of what a model wraps around a caption: chat markup, code fences, headings, JSON, polite words."""

import ast
import html
import json
import re
from typing import Any

from lumina_cli.core.unicap.checks.chat_tokens import remove_reasoning, remove_tokens, strip_chat_tokens
from lumina_cli.core.unicap.checks.courtesies import strip_closing, strip_opening
from lumina_cli.core.unicap.checks.extras import strip_extras, take_first

MAX_ANSWER, MAX_CAPTION = (
    1_000_000,
    20_000,
)  # characters, with and without reasoning; longer texts are too long
ROUNDS = 4  # a caption in JSON in a code fence takes three

_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_PAGE = re.compile(r"\s*<(?:!doctype|html)\b", re.IGNORECASE)  # a web page, such as the error of a proxy
_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)(?:[\w+-]*[ \t]*$|(?:json|text|markdown)?)|(?:```|~~~)[ \t]*$", re.MULTILINE
)
_BREAKS = re.compile(
    r"</?(?:p|br|div|li|ul|ol|h[1-6]|hr|tr|table|section|article|blockquote|figcaption)\s*/?>", re.IGNORECASE
)
_STYLES = re.compile(
    r"</?(?:b|i|em|strong|u|span|font|center|small|mark|code|pre|html|body|head|title|td|th|figure|a|img"
    r"|sup|sub|details"
    r"|summary|main)(?:\s[^<>\n]*)?/?>|<!--.*?-->",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = re.compile(r"\s*(?:#{1,6}\s+(.*?)\s*#*|(?:\*\*|__)([^*_.!?\"]{1,40}?):?(?:\*\*|__):?)\s*$")
_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,}|={3,}|—{2,})\s*$")
_BULLET = re.compile(r"\s*(?:[-*+•·▪◦‣]|\(?\d{1,2}[.)])\s+(?=\S)")
_BOLD = re.compile(r"(\*\*\*|\*\*|__)(?=[^\s*_])([^*]{1,2000}?)(?<=[^\s*_])\1", re.DOTALL)
_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\((?:https?:|www\.|/|\.|data:)?[^()\s]*\)")
_BOXED = re.compile(r"\$*\\boxed\{(?:\\text\{)?(.*?)\}{1,2}\$*$", re.DOTALL)
_PAIRS = {'"': '"', "“": "”", "„": "“”", "«": "»", "「": "」", "『": "』", "`": "`", "'": "'", "‘": "’"}
_LATER_JSON = re.compile(
    r'(?:[^\s{]+\s+){0,10}?[^\s{]*(?:[:：]|\n)\s*(?=\{\s*"(?:captions?|description|answer|text)"\s*:)'
)
_LOOSE_JSON = re.compile(
    r"\{\s*[\"']?(?:caption|description|answer|text)[\"']?\s*:\s*([^\"'{}\[\]][^{}]*)\}$"
)
_CUT_JSON = re.compile(r'[{,]\s*"(\w+)"\s*:\s*"((?:[^"\\]|\\.)*)"')

_CAPTION_KEYS = (
    "caption", "captions", "description", "image_description", "image_caption", "alt_text", "alt", "text",
    "answer", "final_answer", "final", "response", "output", "result", "generated_text", "content", "message",
    "summary", "prompt", "en", "english", "choices", "choice",
)  # fmt: skip
_TAG_KEYS = ("tags", "tag_list", "keywords", "labels", "objects", "tag")
_LIST_KEYS = ("object", "items", "entities", "elements", "detections", "boxes", "bboxes", "results",
              "categories", "subjects", "concepts", "attributes", "colors", "keyword",
              "hashtags")  # fmt: skip
_ITEM_KEYS = ("label", "name", "tag", "text", "caption", "description", "value")


def unwrap(text: str, level: str = "detailed", lang: str = "en") -> str:
    """Return the caption in the answer of a model, on one line.

    Removed are reasoning, the turns and special tokens of chat templates, location tokens, HTML, code fences,
    headings, list marks, JSON around a single caption, labels ("Caption:"), polite words before and after the
    caption, and quotation marks around all of it. The result is empty if nothing else is left.

    level    caption level; the items of a list or of detected objects become tags
    lang     language of the caption to choose from a JSON object
    """
    text = remove_reasoning(text[:MAX_ANSWER])
    if len(text) > MAX_CAPTION or _PAGE.match(text):
        return " ".join(text.split())
    for _ in range(ROUNDS):
        before = text
        text = _unescape(text.replace("\ufeff", "").replace("\u200b", ""))
        text = strip_closing(strip_opening(take_first(strip_chat_tokens(text), level)))
        text = strip_closing(strip_opening(_strip_markup(strip_extras(text, level), level)))
        text = _unquote(_from_json(text, level, lang).strip())
        if text == before:
            break
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """Return a text without HTML entities, also if they were escaped twice."""
    for _ in range(3):
        if not _ENTITY.search(text):
            break
        text = _ENTITY.sub(lambda entity: html.unescape(entity.group()), text)
    return text


def _strip_markup(text: str, level: str) -> str:
    """Return a text without HTML tags, code fences, headings, list marks and emphasis."""
    text = text.strip()
    if level == "tags" and re.fullmatch(r"(?:#[^\W_]\w*[\s,]*)+", text):
        text = ", ".join(re.findall(r"\w+", text))
    if boxed := _BOXED.match(text):
        text = boxed[1]
    if "```" in text or "~~~" in text:
        text = _FENCE.sub("", text)
    if "<" in text:
        text = _STYLES.sub("", text) if "</" in text or "<!--" in text or "<img" in text else text
        text = remove_tokens(_BREAKS.sub("\n", text))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _RULE.match(line)]
    lines = [line[1:].strip() if line.startswith("> ") else line for line in lines]
    headings = [_HEADING.match(line) for line in lines]
    if any(found is None for found in headings):
        lines = [line for line, found in zip(lines, headings, strict=True) if found is None]
    else:
        lines = [found[1] or found[2] or "" for found in headings if found]
    lines = _without_bullets(lines, level)
    if len(lines) > 1 and all(len(line.split()) <= 3 and line[-1] not in ".:!?。," for line in lines):
        lines = [", ".join(lines)] if level == "tags" or len(lines) > 2 else lines  # items of a list
    text = _LINK.sub(r"\1", "\n".join(lines))
    return _BOLD.sub(r"\2", text)


def _without_bullets(lines: list[str], level: str) -> list[str]:
    """Return lines without list marks; the items become tags, or sentences of one text."""
    marks = [_BULLET.match(line) for line in lines]
    count = sum(mark is not None for mark in marks)
    single = count == 1 and len(lines) == 1 and not marks[0].group().strip(" ().")[:1].isdigit()
    if count < 2 and not single:
        return lines
    plain = [line[mark.end() :] if mark else line for line, mark in zip(lines, marks, strict=True)]
    if level != "tags":
        return plain
    first = next(number for number, mark in enumerate(marks) if mark)
    return [*plain[:first], ", ".join(line.strip(" .,;") for line in plain[first:])]


def _unquote(text: str) -> str:
    """Return a text without quotation marks or backticks around all of it."""
    for _ in range(2):
        closing = _PAIRS.get(text[:1])
        body = text.strip("`") if text[:1] == "`" else text[1:-1]
        if (
            not closing
            or len(text) < 3
            or text[-1] not in closing
            or any(mark in body for mark in text[0] + closing)
        ):
            break
        text = body.strip()
    return text


def _from_json(text: str, level: str, lang: str) -> str:
    """Return the caption in a JSON object, list or string, or the text itself if it is neither."""
    text = text.strip()
    at = 0
    if text[:1] not in ("{", "["):
        later = _LATER_JSON.match(text)  # after a few words that introduce it
        if not later:
            return text
        at = later.end()
    value = _parse(text[at:])
    found = _choose(value, level, lang) if value is not None else None
    if found is None and (loose := _LOOSE_JSON.match(text, at)):
        found = loose[1]
    if found is None and text[at] == "{":
        whole = [
            (name, body)
            for name, body in _CUT_JSON.findall(text)
            if name.lower() in _CAPTION_KEYS or name == level
        ]
        if value is None and whole:  # cut off after its caption
            found = whole[0][1].replace('\\"', '"').replace("\\n", "\n")
    return text if found is None else found


def _parse(text: str) -> Any:
    """Return the JSON value, or the Python literal, at the start of a text; None if there is none."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
        return value if isinstance(value, dict) or not text[end:].strip() else None
    except (ValueError, RecursionError):
        pass
    if len(text) > 20_000 or text.count("[") + text.count("{") > 200:
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _choose(value: Any, level: str, lang: str, depth: int = 0) -> str | None:
    """Return the caption of a level and language in a JSON value, or None."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list):
        return _choose_item(value, level, lang, depth)
    if not isinstance(value, dict) or depth > 8:
        return None
    names = {re.sub(r"[\s-]+", "_", str(name).strip().lower()): name for name in value}
    if "error" in names and not any(key in names for key in _CAPTION_KEYS):
        return None
    keys = [lang, level, f"{level}_caption", f"{level}_description", f"caption_{level}", f"{lang}_{level}"]
    keys += [*_TAG_KEYS, *_CAPTION_KEYS] if level == "tags" else [*_CAPTION_KEYS]
    keys += [name for name in names if name.endswith(("_caption", "_description"))]
    for key in keys:
        if key in names and (found := _choose(value[names[key]], level, lang, depth + 1)):
            return found
    if len(value) == 1 and (level == "tags" or not next(iter(names)).endswith((*_TAG_KEYS, *_LIST_KEYS))):
        return _choose(next(iter(value.values())), level, lang, depth + 1)
    return None


def _choose_item(items: list, level: str, lang: str, depth: int) -> str | None:
    """Return the items of a list as tags, the text parts of a message, or the first caption."""
    if not items or depth > 8:
        return None
    if all(isinstance(item, dict) and item.get("type") in ("text", "output_text") for item in items):
        return "".join(str(item.get("text", "")) for item in items)
    if all(isinstance(item, str) for item in items):
        if level == "tags":
            return ", ".join(item.strip() for item in items)
        tags = len(items) > 1 and all(len(item.split()) <= 3 and len(item) < 24 for item in items)
        return None if tags else items[0]
    if level == "tags" and all(isinstance(item, dict) for item in items):
        names = [
            next((item[key] for key in _ITEM_KEYS if isinstance(item.get(key), str)), None) for item in items
        ]
        return ", ".join(dict.fromkeys(filter(None, names))) or None
    return (
        _choose(items[0], level, lang, depth + 1)
        if isinstance(items[0], dict) and "bbox_2d" not in items[0]
        else None
    )

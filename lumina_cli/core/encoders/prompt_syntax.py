"""Prompt syntax of other programs, which the text encoder receives as plain words."""

import re

_OPTION = r"(?<!\S)--[a-z][a-z_-]*(?!\S)"
# weights of A1111 and ComfyUI, prompt editing, emphasis, alternatives, wildcards, extra networks, separators,
# and the options that kohya's scripts and Midjourney read from a prompt
_PATTERNS = (
    r"\((?:[^()\\]|\\.)*[^():\d\s]:[+-]?\d(?:\.\d+)?\)",
    r"\[[^\[\]]*:[^\[\]]*:\s*\d*\.?\d+\s*\]",
    r"\(\([^()]+\)\)+",
    r"\[\[[^\[\]]+\]\]+",
    r"\{\{[^{}]+\}\}+",
    r"(?<![\w.])-?\d*\.?\d+::[^:]+::",
    r"\)(?:\+{1,3}|-{2,3}|\d?\.\d+)(?![\w.])",
    r"\{[^{}]*\|[^{}]*\}",
    r"\[[^\[\]|]+\|[^\[\]]+\]",
    r"(?<!\w)__[\w/*-]+__(?!\w)",
    r"<(?:lora|lyco|lycoris|locon|loha|hypernet|embedding|ti|wildcard|random|segment|preset):[^<>]+>",
    r"(?<!\w)embedding:[\w.-]+",
    _OPTION,
)
_SYNTAX = re.compile("|".join(_PATTERNS), re.IGNORECASE)
_SEPARATORS = re.compile(r"\b(?:BREAK|AND|ADDROW|ADDCOL|ADDCOMM|ADDBASE)\b")
_FIRST_OPTION = re.compile(_OPTION, re.IGNORECASE)
_LONGEST = 40  # characters of an example


def find_foreign_syntax(prompt: str) -> list[str]:
    """Return the parts of a prompt that another program would interpret, each once, in order.

    These are weights such as (word:1.2), alternatives such as {a|b}, extra networks such as <lora:x:0.8>,
    separators such as BREAK, wildcards and options such as --n. Ordinary parentheses are not syntax, nor are
    ratios and times of day, and a prompt in capital letters has no separators.
    """
    found = {match.start(): match[0] for match in _find_syntax(prompt)}
    texts = (text for _, text in sorted(found.items()))
    return list(dict.fromkeys(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts))


def remove_foreign_syntax(prompt: str) -> str:
    """Return a prompt without the parts that `find_foreign_syntax` finds and the values of options.

    Options such as --n end a prompt: all that follows the first one belongs to them.
    """
    option = _FIRST_OPTION.search(prompt)
    text = prompt[: option.start()] if option else prompt
    parts, end = [], 0
    for match in sorted(_find_syntax(text), key=re.Match.start):
        parts.append(text[end : match.start()])
        end = max(end, match.end())
    return " ".join([*parts, text[end:]])


def _find_syntax(prompt: str) -> list[re.Match]:
    found = list(_SYNTAX.finditer(prompt))
    if not prompt.isupper():
        found += _SEPARATORS.finditer(prompt)
    return found

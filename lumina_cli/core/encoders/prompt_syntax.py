"""Prompt syntax of other programs, which the text encoder receives as plain words."""

import re

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
    r"(?<!\S)--[a-z][a-z_-]*(?!\S)",
)
_SYNTAX = re.compile("|".join(_PATTERNS), re.IGNORECASE)
_SEPARATORS = re.compile(r"\b(?:BREAK|AND|ADDROW|ADDCOL|ADDCOMM|ADDBASE)\b")
_LONGEST = 40  # characters of an example


def find_foreign_syntax(prompt: str) -> list[str]:
    """Return the parts of a prompt that another program would interpret, each once, in order.

    These are weights such as (word:1.2), alternatives such as {a|b}, extra networks such as <lora:x:0.8>,
    separators such as BREAK, wildcards and options such as --n. Ordinary parentheses are not syntax, nor are
    ratios and times of day, and a prompt in capital letters has no separators.
    """
    found = {match.start(): match[0] for match in _SYNTAX.finditer(prompt)}
    if not prompt.isupper():
        found |= {match.start(): match[0] for match in _SEPARATORS.finditer(prompt)}
    texts = (text for _, text in sorted(found.items()))
    return list(dict.fromkeys(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts))

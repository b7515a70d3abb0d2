"""Information density of captions: objects, attributes and relations, counted with short word lists.

    objects     noun phrases, recognized by their first word: an article, a numeral or a possessive in English
                and German, a numeral with its counter in Chinese and Japanese; None in Russian
    attributes  words for colors, sizes, materials, appearance and light
    relations   words that relate one object to another: "left of", "behind", "holding"

The lists (assets/density.json) are short, so the counts are lower bounds and comparable only between captions
of one language. The unit of length is the word; in Chinese and Japanese, which are written without spaces,
the character.
"""

import json
import re
from functools import cache

from lumina_cli.core.registry import ASSETS

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
FACT_KINDS = ("objects", "attributes", "relations")
UNSPACED = ("zh", "ja")


def length_of(text: str, lang: str) -> int:
    """Return the number of words of a caption, or of characters in a language without spaces."""
    if lang in UNSPACED:
        return len(re.findall(f"[{_CJK}]", text)) + len(re.findall(r"[A-Za-z0-9]+", text))
    return len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))


def count_facts(text: str, lang: str) -> dict[str, int | None]:
    """Return the counts of "objects", "attributes" and "relations"; None if a language has no list."""
    text = text.lower()
    patterns = _patterns(lang)
    return {
        name: None if pattern is None else len(pattern.findall(text)) for name, pattern in patterns.items()
    }


@cache
def _patterns(lang: str) -> dict[str, re.Pattern | None]:
    """Return a pattern per kind of word, from the lists in assets/density.json."""
    lists = json.loads((ASSETS / "density.json").read_text(encoding="utf-8")).get(lang, {})
    words = {
        name: (lists.get(name) or "").split(", " if name == "relations" else None) for name in FACT_KINDS
    }
    if lang in UNSPACED:  # the counters are patterns already
        found = {name: "|".join(words[name]) for name in FACT_KINDS}
    else:
        ending = {
            "attributes": r"\w*\b" if lang in ("ru", "de") else r"\b"
        }  # the lists have stems of inflected words
        found = {
            name: rf"\b(?:{'|'.join(words[name])}){ending.get(name, chr(92) + 'b')}" for name in FACT_KINDS
        }
    return {name: re.compile(found[name]) if any(words[name]) else None for name in FACT_KINDS}

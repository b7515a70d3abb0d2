"""How much a caption says for its length: objects, attributes and relations, counted by short word lists.

    objects     noun phrases, told by what begins them: an article, a number word or a possessive in English
                and German, a number with its counter in Chinese and Japanese; None in Russian, which has none
    attributes  words for colours, sizes, materials, looks and light
    relations   words that put one thing in relation to another: "left of", "behind", "holding"

The lists (assets/density.json) are short, so the counts are too low and mean something only against another
caption of the same language. The unit of length is the word; in Chinese and Japanese, which do not part
words, the character.
"""

import json
import re
from functools import cache

from lumina_cli.core.registry import ASSETS

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SAID = ("objects", "attributes", "relations")
UNSPACED = ("zh", "ja")


def length_of(text: str, lang: str) -> int:
    """Return how many words a caption has, or characters where the language does not part words."""
    if lang in UNSPACED:
        return len(re.findall(f"[{_CJK}]", text)) + len(re.findall(r"[A-Za-z0-9]+", text))
    return len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))


def count_said(text: str, lang: str) -> dict[str, int | None]:
    """Return {"objects", "attributes", "relations"} of a caption; None where a language has no list."""
    text = text.lower()
    patterns = _patterns(lang)
    return {
        name: None if pattern is None else len(pattern.findall(text)) for name, pattern in patterns.items()
    }


@cache
def _patterns(lang: str) -> dict[str, re.Pattern | None]:
    """What finds each kind of word, from the lists in assets/density.json."""
    lists = json.loads((ASSETS / "density.json").read_text(encoding="utf-8")).get(lang, {})
    words = {name: (lists.get(name) or "").split(", " if name == "relations" else None) for name in SAID}
    if lang in UNSPACED:  # counters are a pattern already
        found = {name: "|".join(words[name]) for name in SAID}
    else:
        ending = {
            "attributes": r"\w*\b" if lang in ("ru", "de") else r"\b"
        }  # stems, where words are inflected
        found = {name: rf"\b(?:{'|'.join(words[name])}){ending.get(name, chr(92) + 'b')}" for name in SAID}
    return {name: re.compile(found[name]) if any(words[name]) else None for name in SAID}

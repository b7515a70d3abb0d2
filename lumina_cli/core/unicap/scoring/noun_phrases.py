"""Noun phrases of English captions, found with short word lists instead of a parser.

    "A red car stands to the left of two small blue balls, on a floor."
    ->  red car, small blue balls, floor

A phrase starts after an article, a numeral or a possessive, after "of" of a measure ("a group of"), or after
"and" or a comma that joins it to the previous phrase; it ends before punctuation, a preposition or a verb.
Words for regions of the image, light, appearance and impressions are excluded, because they cannot be
located. A tag is one phrase. The lists (assets/mentions.json) are short: some phrases are missed, and some
verbs remain.
"""

import json
import re

from lumina_cli.core.registry import ASSETS

LONGEST = 5  # words; of a longer run the last ones, as English noun phrases end with the noun
_LISTS = json.loads((ASSETS / "mentions.json").read_text(encoding="utf-8"))
_BEGIN, _END, _MEASURES = (frozenset(_LISTS[name].split()) for name in ("begin", "end", "measures"))
_NOUNS = frozenset(_LISTS["nouns"].split())  # nouns with the ending of a participle
_NOT_OBJECTS = frozenset(f"{_LISTS['nowhere']} {_LISTS['looks']}".split())
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


def find_noun_phrases(caption: str, tags: bool = False) -> list[str]:
    """Return the noun phrases of an English caption, in lower case, in order, without duplicates."""
    if tags:
        found = [re.sub(r"[^\w\s'’-]", " ", tag).lower().split() for tag in re.split(r"[,;\n]", caption)]
    else:
        found = _phrases([token.lower() for token in _TOKEN.findall(caption)])
    return list(dict.fromkeys(" ".join(words) for words in map(_trim, found) if words))


def _phrases(tokens: list[str]) -> list[list[str]]:
    """Return the runs of words that may be noun phrases, determiners included."""
    found, phrase = [], None
    for place, token in enumerate(tokens):
        if token in _BEGIN and not (token == "that" and phrase):
            found.append(phrase)
            phrase = []
        elif token == "of" and phrase and phrase[-1] in _MEASURES:
            phrase = []
        elif token in _END or not token[0].isalnum() or token.endswith("ly"):
            joins = token in ("and", ",", "or") and bool(phrase)
            found.append(phrase)
            phrase = [] if joins and _continues(tokens[place + 1 :]) else None
        elif phrase is not None:
            if phrase and _is_participle(token):
                found.append(phrase)
                phrase = None
            else:
                phrase.append(token)
    return [words for words in [*found, phrase] if words]


def _continues(rest: list[str]) -> bool:
    """Return whether the next word may start another item of a list, without an article."""
    return bool(rest) and rest[0] not in _END and rest[0] not in _BEGIN and not _is_participle(rest[0])


def _is_participle(word: str) -> bool:
    return len(word) > 4 and word.endswith(("ing", "ed")) and word not in _NOUNS


def _trim(words: list[str]) -> list[str]:
    while words and (words[0] in _BEGIN or words[0].isdigit()):
        words = words[1:]
    if len(words) > 1 and words[-1] in ("left", "right"):  # "a car left of a ball"
        words = words[:-1]
    return [] if not words or words[-1] in _NOT_OBJECTS else words[-LONGEST:]

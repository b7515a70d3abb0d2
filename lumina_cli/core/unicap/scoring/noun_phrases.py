"""What an English caption says is in its picture: its noun phrases, by short word lists and no parser.

    "A red car stands to the left of two small blue balls, on a floor."
    ->  red car, small blue balls, floor

A phrase begins behind an article, a number word or a possessive, at "of" behind a measure ("a group of"), or
joined by "and" or a comma to a phrase before; it ends before punctuation, a preposition or a verb. Left out
are words for parts of the picture, for light, looks and impressions, which nobody can point at. Tags are
phrases as they stand. The lists (assets/mentions.json) are short: some phrases are missed, some verbs stay.
"""

import json
import re

from lumina_cli.core.registry import ASSETS

LONGEST = 5  # words; of a longer run the last ones, where English puts the thing
_LISTS = json.loads((ASSETS / "mentions.json").read_text(encoding="utf-8"))
_BEGIN, _END, _MEASURES = (frozenset(_LISTS[name].split()) for name in ("begin", "end", "measures"))
_NOUNS = frozenset(_LISTS["nouns"].split())  # that end like a participle
_NO_THING = frozenset(f"{_LISTS['nowhere']} {_LISTS['looks']}".split())
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


def find_noun_phrases(caption: str, tags: bool = False) -> list[str]:
    """Return the noun phrases of an English caption, in lower case, in their order, each once."""
    if tags:
        found = [re.sub(r"[^\w\s'’-]", " ", tag).lower().split() for tag in re.split(r"[,;\n]", caption)]
    else:
        found = _phrases([token.lower() for token in _TOKEN.findall(caption)])
    return list(dict.fromkeys(" ".join(words) for words in map(_trimmed, found) if words))


def _phrases(tokens: list[str]) -> list[list[str]]:
    """Return runs of words that may name a thing, with what begins them."""
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
    """Whether the next word may begin another thing of a list, which has no article then."""
    return bool(rest) and rest[0] not in _END and rest[0] not in _BEGIN and not _is_participle(rest[0])


def _is_participle(word: str) -> bool:
    return len(word) > 4 and word.endswith(("ing", "ed")) and word not in _NOUNS


def _trimmed(words: list[str]) -> list[str]:
    while words and (words[0] in _BEGIN or words[0].isdigit()):
        words = words[1:]
    if len(words) > 1 and words[-1] in ("left", "right"):  # "a car left of a ball"
        words = words[:-1]
    return [] if not words or words[-1] in _NO_THING else words[-LONGEST:]

"""Patterns that find objects, tints, numbers, lights and backdrops in captions, from the lexicon."""

import re
from collections.abc import Iterable
from functools import cache

from lumina_cli.core.nano.lexicon import BACKDROP_WORDS, PHRASES, Chinese, Japanese
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, LIGHTS, TINTS
from lumina_cli.core.nano.templates import SIDES, TEMPLATES

SEPARATORS = {"zh": "，", "ja": "、"}  # between tags; in other languages ", "
_ENDINGS = {"en": ("",), "zh": ("",), "ja": ("",), "de": ("", "e", "er", "es", "en", "em")}
_RUSSIAN = "ый ий ой ая яя ое ее ого его ой ей ым им ом ых их ые ие"


def any_of(words: Iterable[str], edge: str) -> re.Pattern:
    return re.compile(edge + _choice(word.lower() for word in words) + edge)


def _choice(words: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(set(words), key=lambda w: (-len(w), w))) + ")"


def inflect(stems: Iterable[str], language: str) -> list[str]:
    """Return adjectives in all forms of a language."""
    endings = _RUSSIAN.split() if language == "ru" else _ENDINGS[language]
    return [stem + ending for stem in stems for ending in endings]


@cache
def tint_words(language: str) -> dict[str, str]:
    """Return all forms of all tints: form -> tint."""
    phrase = PHRASES[language]
    if language == "en":
        return {tint: tint for tint in TINTS}
    return {form: tint for tint in TINTS for form in inflect([phrase.TINTS[tint]], language)}


@cache
def noun_words(language: str) -> dict[str, str]:
    """Return all forms of all nouns: form -> kind."""
    phrase, nouns = PHRASES[language], {}
    for kind in KINDS:
        if language == "en":
            plural = phrase.PLURALS.get(kind, f"{kind}s")
            forms = [kind, plural]
        else:
            forms = phrase.NOUNS[kind].split()[1:]
        if language == "de":
            forms += [form + ending for form in forms for ending in ("n", "en", "es", "s", "e")]
        nouns |= {form.lower(): kind for form in forms}
    return nouns


@cache
def number_words(language: str) -> dict[str, int]:
    words = {word: number for number, word in PHRASES[language].NUMBERS.items()}
    more = {
        "en": {"one": 1, "a": 1, "an": 1},
        "de": {"eine": 1, "ein": 1, "einem": 1, "einer": 1},
        "ru": {"две": 2, "один": 1, "одна": 1, "одно": 1},
        "zh": {"二": 2},
        "ja": {},
    }[language]
    return words | more | {str(number): number for number in range(1, 10)}


@cache
def object_pattern(language: str) -> re.Pattern:
    """Return the pattern of a noun phrase: optional number, size and tint, then the noun."""
    tint, noun = (
        f"(?P<{name}>{_choice(words(language))})"
        for name, words in (("tint", tint_words), ("noun", noun_words))
    )
    number = _choice(number_words(language))
    if language == "zh":
        counter = _choice(value.split()[0] for value in Chinese.NOUNS.values())
        before, after = f"(?:(?P<number>{number}){counter})?", f"(?:，共(?P<number2>{number}){counter})?"
        return re.compile(f"{before}(?:{tint}的?)?[小大]?{noun}{after}")
    if language == "ja":
        counter = _choice(value.split()[0] for value in Japanese.NOUNS.values())
        before, after = f"(?:(?P<number>{number}){counter}の)?", f"(?:が(?P<number2>{number}){counter})?"
        return re.compile(f"{before}(?:小さな|大きな)?{tint}?{noun}{after}")
    size = {
        "en": "(?:small|large) ",
        "de": r"(?:klein|groß|gross)\w* ",
        "ru": r"(?:маленьк|больш)\w+ ",
    }[language]
    the = {"en": "the ", "de": "(?:der|die|das|dem|den) ", "ru": "(?!)"}[language]
    return re.compile(rf"\b(?:(?P<number>{number}) |{the})?(?:{size})?(?:{tint} )?{noun}\b")


@cache
def light_patterns(language: str) -> list[tuple[str, re.Pattern]]:
    frames, sides = TEMPLATES[language]["light"] + TEMPLATES[language]["light tag"], SIDES[language]
    return [(side, any_of([f.format(side=sides[side][0]) for f in frames], "")) for side in LIGHTS]


@cache
def backdrop_patterns(language: str) -> list[tuple[str, re.Pattern]]:
    """Return the pattern of each backdrop: whole words in all forms, so "blue" does not match "pale blue"."""
    edge = "" if language in SEPARATORS else r"\b"
    return [(name, any_of(inflect(BACKDROP_WORDS[language][name], language), edge)) for name in BACKDROPS]

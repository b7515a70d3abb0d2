"""Reads captions of nano scenes back: what they say is there, in five languages and at any level.

Objects, tints and numbers are found by their words, in whatever sentence they stand. Relations are found by
the sentence frames of `frames.py`, filled with the objects found, so that a wording which no frame has is not
understood: it counts as not said.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

from lumina_cli.core.nano.lexicon import BACKDROP_WORDS, PHRASES, Chinese, Japanese
from lumina_cli.core.nano.scene import BACKDROPS, INVERSE, KINDS, LIGHTS, TINTS, Scene
from lumina_cli.core.nano.templates import RELATION_WORDS, SIDES, TEMPLATES

Relation = tuple[str, str, str]  # kind, one of "left of", "above", "in front of", kind
UPRIGHT = ("left of", "above", "in front of")  # the others are told as these, the other way round
SEPARATORS = {"zh": "，", "ja": "、"}  # between tags; elsewhere ", "
SLOT = "⟦{}⟧"  # stands for an object in a sentence that is matched with frames
END = "⏎"  # stands for the end of a tag
_ENDINGS = {"en": ("",), "zh": ("",), "ja": ("",), "de": ("", "e", "er", "es", "en", "em")}
_RUSSIAN = "ый ий ой ая яя ое ее ого его ой ей ым им ом ых их ые ие"


@dataclass(frozen=True)
class Facts:
    """What a caption says, or what is true of a scene.

    kinds      what is there
    tints      (kind, tint) pairs
    counts     (kind, number) pairs
    relations  see Relation
    backdrop   its name, or None where it is not said; so `light`, the side that it comes from
    """

    kinds: frozenset[str]
    tints: frozenset[tuple[str, str]]
    counts: frozenset[tuple[str, int]]
    relations: frozenset[Relation]
    backdrop: str | None
    light: str | None


@dataclass(frozen=True)
class _Mention:
    kind: str
    tint: str | None
    number: int | None  # None: not said


def parse_caption(caption: str, language: str) -> Facts:
    """Return what a caption in one of the five languages says."""
    text = caption.lower()
    told, mentions = _mentions(text, language)
    return Facts(
        frozenset(mention.kind for mention in mentions),
        frozenset((mention.kind, mention.tint) for mention in mentions if mention.tint),
        frozenset(_counts(mentions)),
        frozenset(_relations(told, mentions, language)),
        _first(_backdrops(language), text),
        _first(_lights(language), text),
    )


def order_of(caption: str, language: str) -> list[str]:
    """Return the kinds that a caption names, each once, in the order in which it names them."""
    return list(dict.fromkeys(mention.kind for mention in _mentions(caption.lower(), language)[1]))


def _mentions(text: str, language: str) -> tuple[str, list[_Mention]]:
    """Return a text with a slot in the place of each object, and the objects."""
    mentions: list[_Mention] = []

    def note(found: re.Match) -> str:
        words = {name: word for name, word in found.groupdict().items() if word}
        number = next((_numbers(language)[w] for n, w in words.items() if n.startswith("number")), None)
        tint = _tints(language).get(words.get("tint", ""))
        mentions.append(_Mention(_nouns(language)[words["noun"]], tint, number))
        return SLOT.format(len(mentions) - 1)

    return _phrase(language).sub(note, text), mentions


def facts_of(scene: Scene) -> Facts:
    """Return all that is true of a scene; its relations are those that a caption may name."""
    kinds = [thing.kind for thing in scene.things]
    return Facts(
        frozenset(kinds),
        frozenset((thing.kind, thing.tint) for thing in scene.things),
        frozenset((kind, kinds.count(kind)) for kind in kinds),
        frozenset(_true_relations(scene)),
        scene.backdrop,
        scene.light,
    )


def main_relations(scene: Scene, level: str) -> frozenset[Relation]:
    """Return the relations that a caption of a level should name; only the detailed one tells every row."""
    if scene.relation is not None:
        a, b = scene.things
        return frozenset([_upright(a.kind, scene.relation, b.kind)])
    if level != "detailed" or scene.layout not in ("pair", "group"):
        return frozenset()
    kinds = [thing.kind for thing in scene.things]
    return frozenset((a, "left of", b) for a, b in pairwise(kinds))


def _true_relations(scene: Scene) -> Iterator[Relation]:
    if scene.relation is not None:
        yield from main_relations(scene, "short")
    if scene.layout in ("pair", "group") or scene.relation in ("in front of", "behind"):
        for a, b in product(scene.things, scene.things):
            if a.x < b.x - 0.2:
                yield a.kind, "left of", b.kind


def _upright(a: str, relation: str, b: str) -> Relation:
    return (a, relation, b) if relation in UPRIGHT else (b, INVERSE[relation], a)


def _counts(mentions: list[_Mention]) -> Iterator[tuple[str, int]]:
    """One of each kind unless a number is said; kinds in several tints are as many."""
    for kind in {mention.kind for mention in mentions}:
        same = [mention for mention in mentions if mention.kind == kind]
        said = max((mention.number or 1) for mention in same)
        yield kind, max(said, len({mention.tint for mention in same if mention.tint}))


def _relations(told: str, mentions: list[_Mention], language: str) -> Iterator[Relation]:
    """Match frames with a text whose objects are slots, the longest first, none over another."""
    taken = [False] * len(told)
    found = []
    for pattern, claims in _patterns(language):
        for match in pattern.finditer(told):
            if not any(taken[match.start() : match.end()]):
                taken[match.start() : match.end()] = [True] * (match.end() - match.start())
                found.append((match, claims))
    kinds = {mention.kind for mention in mentions}
    for match, claims in found:
        named = {slot: mentions[int(number)].kind for slot, number in match.groupdict().items()}
        for a, relation, b in claims:
            others = kinds - {named[a]}
            if b == "other" and len(others) != 1:
                continue
            other = next(iter(others)) if b == "other" else named[b]
            if named[a] != other:
                yield _upright(named[a], relation, other)


@cache
def _patterns(language: str) -> list[tuple[re.Pattern, list[tuple[str, str, str]]]]:
    """Every way to tell relations: a pattern over slots, and what it claims of its slots; longest first."""
    claims = {}
    for frame, said in _parse_attributes(language):
        claims.setdefault(frame.lower(), said)
    found = []
    for frame, said in sorted(claims.items(), key=lambda item: -len(item[0])):
        parts = re.split(r"(⟦\w+⟧)", frame)
        seen: set[str] = set()
        pattern = ""
        for part in parts:
            name = part[1:-1] if part.startswith("⟦") else None
            if name is None:
                pattern += re.escape(part)
            elif name in seen:
                pattern += r"⟦\d+⟧"
            else:
                seen.add(name)
                pattern += rf"⟦(?P<{name}>\d+)⟧"
        pattern = pattern.replace(END, "(?![^,，、])")
        pattern = rf"(?<!\w){pattern}(?!\w)" if language not in SEPARATORS else pattern
        found.append((re.compile(pattern), said))
    return found


class _Name(str):
    """A slot for an object: the same whatever form a frame asks for."""

    def __format__(self, form: str) -> str:
        return SLOT.format(str(self))


_A, _B, _C = (_Name(name) for name in "abc")


def _parse_attributes(language: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Frames with slots ⟦a⟧ ⟦b⟧ ⟦c⟧ for the objects, each with what it claims."""
    frames, words = TEMPLATES[language], RELATION_WORDS[language]
    row = [("a", "left of", "b"), ("b", "left of", "c")]
    for key in ("row", "row photo", "place three"):
        for frame in frames[key]:
            if SIDES[language]["left"][0] in frame:  # "b between a and c" says not which is where
                yield frame.format(a=_A, b=_B, c=_C), row
    for relation, (ways, adverb, here, tag) in words.items():
        claim = [("a", relation, "b")]
        there, other_tag = words[INVERSE[relation]][2:]
        for key in ("relation", "relation photo", "place two"):
            for frame, way in product(frames[key], ways):
                yield frame.format(a=_A, b=_B, p=way.format(b=_B), adv=adverb, here=here, there=there), claim
        comma = SEPARATORS.get(language, ", ")
        for one, two in product(frames["side tag"], repeat=2):
            yield f"{one.format(a=_A, here=tag)}{comma}{two.format(a=_B, here=other_tag)}", claim
            yield f"{one.format(a=_A, here=here)}{comma}{two.format(a=_B, here=there)}", claim
        yield f"{_A:}{comma}{_B:}{comma}{tag}{END}", claim
    for side in LIGHTS:
        word, further = SIDES[language][side]
        claim = [("a", "in front of", "other"), ("a", f"{side} of", "other")]
        for frame in frames["place depth"]:
            yield frame.format(a=_A, side=word, further=further), claim


@cache
def _lights(language: str) -> list[tuple[str, re.Pattern]]:
    frames, sides = TEMPLATES[language]["light"] + TEMPLATES[language]["light tag"], SIDES[language]
    return [(side, _either([f.format(side=sides[side][0]) for f in frames], "")) for side in LIGHTS]


@cache
def _backdrops(language: str) -> list[tuple[str, re.Pattern]]:
    """The words of each backdrop, in every form; whole words, so that "blue" is no "pale blue"."""
    edge = "" if language in SEPARATORS else r"\b"
    return [(name, _either(_forms(BACKDROP_WORDS[language][name], language), edge)) for name in BACKDROPS]


def _first(patterns: list[tuple[str, re.Pattern]], text: str) -> str | None:
    """The name of the pattern that is found first, the longer of two at one place."""
    matches = [(pattern.search(text), name) for name, pattern in patterns]
    found = [(match.start(), -len(match[0]), name) for match, name in matches if match]
    return min(found)[2] if found else None


def _either(words: Iterable[str], edge: str) -> re.Pattern:
    return re.compile(edge + _choice(word.lower() for word in words) + edge)


def _choice(words: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(set(words), key=lambda w: (-len(w), w))) + ")"


def _forms(stems: Iterable[str], language: str) -> list[str]:
    """Adjectives in every form of a language."""
    endings = _RUSSIAN.split() if language == "ru" else _ENDINGS[language]
    return [stem + ending for stem in stems for ending in endings]


@cache
def _tints(language: str) -> dict[str, str]:
    """Every form of every tint."""
    phrase = PHRASES[language]
    if language == "en":
        return {tint: tint for tint in TINTS}
    return {form: tint for tint in TINTS for form in _forms([phrase.TINTS[tint]], language)}


@cache
def _nouns(language: str) -> dict[str, str]:
    """Every form of every noun."""
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
def _numbers(language: str) -> dict[str, int]:
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
def _phrase(language: str) -> re.Pattern:
    """What names an object: number, size and tint before the noun, each of them if said."""
    tint, noun = (
        f"(?P<{name}>{_choice(words(language))})" for name, words in (("tint", _tints), ("noun", _nouns))
    )
    number = _choice(_numbers(language))
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

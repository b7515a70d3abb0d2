"""Parser of captions of nano scenes: the facts that they state, in five languages and at any level.

Objects, tints and numbers are found by their words, in any sentence. Relations are found with the sentence
templates of `templates.py`, filled with these objects; a relation in another wording is not recognized.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

from lumina_cli.core.nano.caption_patterns import (
    SEPARATORS,
    backdrop_patterns,
    light_patterns,
    noun_words,
    number_words,
    object_pattern,
    tint_words,
)
from lumina_cli.core.nano.scene import INVERSE, LIGHTS, Scene
from lumina_cli.core.nano.templates import RELATION_WORDS, SIDES, TEMPLATES

Relation = tuple[str, str, str]  # kind, one of "left of", "above", "in front of", kind
NORMAL_RELATIONS = (
    "left of",
    "above",
    "in front of",
)  # the others are converted to these
SLOT = "⟦{}⟧"  # replaces an object in a sentence that is matched with templates
END = "⏎"  # marks the end of a tag


@dataclass(frozen=True)
class Facts:
    """The facts that a caption states, or that are true for a scene.

    kinds      the objects
    tints      (kind, tint) pairs
    counts     (kind, number) pairs
    relations  see `Relation`
    backdrop   its name, or None if it is not stated
    light      the side that the light comes from, or None if it is not stated
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
    number: int | None  # None: not stated


def parse_caption(caption: str, language: str) -> Facts:
    """Return the facts that a caption in one of the five languages states."""
    text = caption.lower()
    text, mentions = _mentions(text, language)
    return Facts(
        frozenset(mention.kind for mention in mentions),
        frozenset((mention.kind, mention.tint) for mention in mentions if mention.tint),
        frozenset(_counts(mentions)),
        frozenset(_relations(text, mentions, language)),
        _first(backdrop_patterns(language), text),
        _first(light_patterns(language), text),
    )


def order_of(caption: str, language: str) -> list[str]:
    """Return the kinds of a caption in the order of their first mention."""
    return list(dict.fromkeys(mention.kind for mention in _mentions(caption.lower(), language)[1]))


def _mentions(text: str, language: str) -> tuple[str, list[_Mention]]:
    """Replace each object of a text by a slot; return the text and the objects."""
    mentions: list[_Mention] = []

    def note(found: re.Match) -> str:
        words = {name: word for name, word in found.groupdict().items() if word}
        number = next((number_words(language)[w] for n, w in words.items() if n.startswith("number")), None)
        tint = tint_words(language).get(words.get("tint", ""))
        mentions.append(_Mention(noun_words(language)[words["noun"]], tint, number))
        return SLOT.format(len(mentions) - 1)

    return object_pattern(language).sub(note, text), mentions


def facts_of(scene: Scene) -> Facts:
    """Return all facts of a scene; its relations are those that a caption may state."""
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
    """Return the relations that a caption of a level should state; only "detailed" lists whole rows."""
    if scene.relation is not None:
        a, b = scene.things
        return frozenset([_normalize(a.kind, scene.relation, b.kind)])
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


def _normalize(a: str, relation: str, b: str) -> Relation:
    return (a, relation, b) if relation in NORMAL_RELATIONS else (b, INVERSE[relation], a)


def _counts(mentions: list[_Mention]) -> Iterator[tuple[str, int]]:
    """Yield (kind, number): the stated number or 1, and at least the number of tints of the kind."""
    for kind in {mention.kind for mention in mentions}:
        same = [mention for mention in mentions if mention.kind == kind]
        stated = max((mention.number or 1) for mention in same)
        yield kind, max(stated, len({mention.tint for mention in same if mention.tint}))


def _relations(text: str, mentions: list[_Mention], language: str) -> Iterator[Relation]:
    """Match templates with a text whose objects are slots: the longest first, without overlaps."""
    taken = [False] * len(text)
    found = []
    for pattern, claims in _patterns(language):
        for match in pattern.finditer(text):
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
                yield _normalize(named[a], relation, other)


@cache
def _patterns(language: str) -> list[tuple[re.Pattern, list[tuple[str, str, str]]]]:
    """Return a pattern over slots for each wording of a relation, with its claims; longest first."""
    claims = {}
    for template, stated in _relation_templates(language):
        claims.setdefault(template.lower(), stated)
    found = []
    for template, stated in sorted(claims.items(), key=lambda item: -len(item[0])):
        parts = re.split(r"(⟦\w+⟧)", template)
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
        found.append((re.compile(pattern), stated))
    return found


class _Name(str):
    """A slot for an object; it ignores the grammatical form that a template requests."""

    def __format__(self, form: str) -> str:
        return SLOT.format(str(self))


_A, _B, _C = (_Name(name) for name in "abc")


def _relation_templates(language: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each template with slots ⟦a⟧ ⟦b⟧ ⟦c⟧ for the objects, and the relations that it claims."""
    templates, words = TEMPLATES[language], RELATION_WORDS[language]
    row = [("a", "left of", "b"), ("b", "left of", "c")]
    for key in ("row", "row photo", "place three"):
        for template in templates[key]:
            if SIDES[language]["left"][0] in template:  # "b between a and c" does not state the sides
                yield template.format(a=_A, b=_B, c=_C), row
    for relation, (ways, adverb, here, tag) in words.items():
        claim = [("a", relation, "b")]
        there, other_tag = words[INVERSE[relation]][2:]
        for key in ("relation", "relation photo", "place two"):
            for template, way in product(templates[key], ways):
                yield (
                    template.format(a=_A, b=_B, p=way.format(b=_B), adv=adverb, here=here, there=there),
                    claim,
                )
        comma = SEPARATORS.get(language, ", ")
        for one, two in product(templates["side tag"], repeat=2):
            yield f"{one.format(a=_A, here=tag)}{comma}{two.format(a=_B, here=other_tag)}", claim
            yield f"{one.format(a=_A, here=here)}{comma}{two.format(a=_B, here=there)}", claim
        yield f"{_A:}{comma}{_B:}{comma}{tag}{END}", claim
    for side in LIGHTS:
        word, further = SIDES[language][side]
        claim = [("a", "in front of", "other"), ("a", f"{side} of", "other")]
        for template in templates["place depth"]:
            yield template.format(a=_A, side=word, further=further), claim


def _first(patterns: list[tuple[str, re.Pattern]], text: str) -> str | None:
    """Return the name of the first matching pattern; the longer one of two at the same position."""
    matches = [(pattern.search(text), name) for name, pattern in patterns]
    found = [(match.start(), -len(match[0]), name) for match, name in matches if match]
    return min(found)[2] if found else None

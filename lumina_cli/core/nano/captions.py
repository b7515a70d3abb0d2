"""Captions of nano scenes in five languages and at four levels, and GenEval-style prompts.

Text is deterministic for a scene, language, level and seed. Captions are always true, but a short one may
omit tints or the relation, as benchmark prompts do.
"""

import random
from dataclasses import dataclass, replace

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.jsonl import LEVELS
from lumina_cli.core.nano.lexicon import BACKDROP_WORDS, PHRASES, Backdrop, Phrase
from lumina_cli.core.nano.scene import KINDS, RELATIONS, TINTS, Scene, Thing
from lumina_cli.core.nano.templates import RELATION_WORDS, SIDES, TEMPLATES
from lumina_cli.core.registry import did_you_mean

LANGUAGES = ("en", "zh", "ja", "ru", "de")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
INVERSES = {"left of": "right of", "above": "below", "in front of": "behind"}
INVERSES |= {b: a for a, b in INVERSES.items()}


@dataclass(frozen=True)
class Style:
    """Probabilities of the wordings of a level, 0 to 1, and whether it states sizes.

    photo           word the caption as "a photo of"
    tintless        omit the tints, in other wordings
    tintless_photo  omit the tints, in photo wordings: higher, as most GenEval prompts have no tint
    stated          state the relation of the scene
    rendered        state the style of the image, in a detailed caption
    """

    photo: float
    tintless: float
    tintless_photo: float
    stated: float
    sizes: bool
    rendered: float = 0.0


STYLES = {
    "short": Style(photo=0.4, tintless=0.28, tintless_photo=0.5, stated=0.5, sizes=False),
    "medium": Style(photo=0.15, tintless=0.0, tintless_photo=0.0, stated=0.9, sizes=True),
    "detailed": Style(photo=0.15, tintless=0.0, tintless_photo=0.0, stated=1.0, sizes=True),
}
INVERTED = 1 / 3  # probability that a stated relation is worded from the other object
ONE_TINT = 0.03  # probability that a caption of two objects names only one tint


def describe_scene(
    scene: Scene, language: str, level: str, seed: int = 0, styles: dict[str, Style] = STYLES
) -> str:
    """Return a caption of a scene.

    Raises:
        UsageError: if the language or the level does not exist.
    """
    _check("language", language, LANGUAGES)
    _check("level", level, LEVELS)
    writer = _CaptionWriter(scene, language, random.Random(f"{seed}/{language}/{level}/{scene!r}"), styles)
    return getattr(writer, level)()


def all_captions(scene: Scene, seed: int = 0) -> dict[str, dict[str, str]]:
    """Return {language: {level: caption}}."""
    return {
        language: {level: describe_scene(scene, language, level, seed) for level in LEVELS}
        for language in LANGUAGES
    }


def prompt_for(
    task: str,
    things: list[tuple[str, str | None]],
    relation: str | None = None,
    count: int = 1,
    language: str = "en",
) -> str:
    """Return the prompt of a GenEval task about (kind, tint or None) things.

    In English this is GenEval's sentence, in other languages its natural counterpart, as used in captions.
    In "position", things[0] is in `relation` to things[1]; "counting" requests `count` of things[0].

    Raises:
        UsageError: if a name is unknown, or an argument does not fit the task.
    """
    _check("task", task, TASKS)
    _check("language", language, LANGUAGES)
    needed = 2 if task in ("two_object", "position", "color_attr") else 1
    if len(things) != needed:
        raise UsageError(f"task {task!r} takes {needed} thing(s), not {len(things)}")
    for kind, tint in things:
        _check("kind", kind, KINDS)
        _check("tint", tint, (*TINTS, None))
    if task == "counting" and count not in (2, 3, 4):
        raise UsageError(f"task 'counting' takes a count of 2, 3 or 4, not {count}")
    number = count if task == "counting" else 1
    phrases = [PHRASES[language](kind, tint, count=number, tight=True) for kind, tint in things]
    slots = dict(zip("ab", phrases, strict=False))
    if task == "position":
        _check("relation", relation, RELATIONS)
        slots["p"] = RELATION_WORDS[language][relation][0][0].format(**slots)
    key = {"counting": "count", "position": "relation"}.get(task, "one" if needed == 1 else "two")
    return TEMPLATES[language][f"{key} photo"][0].format(**slots)


def _check(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        names = [entry for entry in known if entry]
        hint = did_you_mean(str(value), names) or f"; choose from {', '.join(names)}"
        raise UsageError(f"unknown {name} {value!r}{hint}")


def _size_words(scene: Scene) -> list[str | None]:
    """Return the size word of each object, or None unless the image clearly shows its size."""
    if scene.layout == "single":
        size = scene.things[0].size
        return ["small" if size < 1.2 else "large" if size > 1.5 else None]
    if scene.layout == "pair" or scene.relation in ("left of", "right of"):
        sizes = [thing.size * (1 + 0.1 * thing.z) for thing in scene.things]  # nearer objects appear larger
        if max(sizes) > 1.15 * min(sizes):
            return ["large" if size == max(sizes) else "small" for size in sizes]
    return [None] * len(scene.things)


class _CaptionWriter:
    """Writer of one caption: random state, and the words of one language."""

    def __init__(self, scene: Scene, language: str, rng: random.Random, styles: dict[str, Style]):
        self.scene, self.language, self.rng, self.styles = scene, language, rng, styles
        self.templates = TEMPLATES[language]
        first, second = BACKDROP_WORDS[language][scene.backdrop]
        self.ground = Backdrop(first if self._chance(0.6) else second)

    def short(self) -> str:
        return self._core(self.styles["short"], self._chance(self.styles["short"].photo))

    def medium(self) -> str:
        style = self.styles["medium"]
        photo = self._chance(style.photo)
        return self._on_backdrop(self._core(style, photo), photo)

    def detailed(self) -> str:
        """Return two to four sentences: objects, positions, backdrop, light."""
        style = self.styles["detailed"]
        photo, early = self._chance(style.photo), self._chance(0.5)
        core = self._core(style, photo)
        rest = [self._light("light")]
        if not early:
            rest.append(self._fill("ground", g=self.ground))
            self.rng.shuffle(rest)
        if style.rendered and self._chance(style.rendered):
            rest.append(self._fill("style"))
        return self._sentences([self._on_backdrop(core, photo) if early else core, self._places(), *rest])

    def tags(self) -> str:
        scene = self.scene
        phrases = self._phrases(list(scene.things), tinted=True, sizes=self._chance(0.3))
        tags = [format(phrase, "bare") for phrase in phrases]
        if scene.layout == "count":
            tags = [format(phrases[0], "")]
        elif scene.relation is not None:
            here, there = (
                RELATION_WORDS[self.language][r][3] for r in (scene.relation, INVERSES[scene.relation])
            )
            sided = [self._fill("side tag", a=a, here=h) for a, h in zip(phrases, (here, there), strict=True)]
            tags = self.rng.choice([[*tags, here], [*tags[::-1], there], sided, sided[::-1]])
        elif scene.layout == "pair":
            self.rng.shuffle(tags)
        ground = self._fill("ground tag", g=self.ground)
        tags = [ground, *tags] if self._chance(0.2) else [*tags, ground]
        if self._chance(0.3):
            tags.append(self._light("light tag"))
        return {"zh": "，", "ja": "、"}.get(self.language, ", ").join(tags)

    def _core(self, style: Style, photo: bool) -> str:
        """Return the objects of the scene, as one clause."""
        scene, things = self.scene, list(self.scene.things)
        tinted = not self._chance(style.tintless_photo if photo else style.tintless)
        phrases = self._phrases(things, tinted, style.sizes)
        if style.tintless and tinted and len(phrases) == 2 and self._chance(ONE_TINT):
            bare = self.rng.randrange(2)
            phrases[bare] = replace(phrases[bare], tint=None)
        if len(phrases) == 1:
            return self._fill("count" if scene.layout == "count" else "one", photo, a=phrases[0])
        if len(phrases) == 3:
            row = self._chance(0.5)
            if not row:
                self.rng.shuffle(phrases)
            return self._fill("row" if row else "three", photo, **dict(zip("abc", phrases, strict=True)))
        if scene.relation is not None and self._chance(style.stated):
            return self._related(phrases, photo)
        self.rng.shuffle(phrases)
        key = "beside" if scene.layout == "pair" and not photo else "two"
        return self._fill(key, photo, a=phrases[0], b=phrases[1])

    def _related(self, phrases: list[Phrase], photo: bool) -> str:
        relation = self.scene.relation
        if self._chance(INVERTED):
            phrases, relation = phrases[::-1], INVERSES[relation]
        a, b = phrases
        ways, adverb, here, _ = RELATION_WORDS[self.language][relation]
        there = RELATION_WORDS[self.language][INVERSES[relation]][2]
        return self._fill(
            "relation", photo, a=a, b=b, p=self._pick(ways).format(b=b), adv=adverb, here=here, there=there
        )

    def _places(self) -> str:
        """Return the positions of the objects, as one sentence."""
        scene, things = self.scene, self.scene.things
        names = dict(zip("abc", self._phrases(list(things), tinted=False, sizes=False), strict=False))
        if scene.layout == "single":
            x = things[0].x
            return self._fill("place middle" if abs(x) < 0.18 else "place one", **names, **self._side(x))
        if scene.layout == "group":
            return self._fill("place three", **names)
        if scene.layout == "count":
            behind = sum(thing.z < -0.5 for thing in things)
            shape = {1: "triangle", 2: "square"}[behind] if behind else {2: "side", 3: "row"}[len(things)]
            return self._fill(f"place {shape}", **names)
        relation = scene.relation or "left of"
        if relation in ("in front of", "behind") and self._chance(0.5):
            near, far = (0, 1) if relation == "in front of" else (1, 0)
            return self._fill(
                "place depth", a=names["ab"[near]], **self._side(things[near].x - things[far].x)
            )
        here, there = (RELATION_WORDS[self.language][r][2] for r in (relation, INVERSES[relation]))
        return self._fill("place two", **names, here=here, there=there)

    def _phrases(self, things: list[Thing], tinted: bool, sizes: bool) -> list[Phrase]:
        """Return a phrase per object, or a single one for the equal objects of a counting scene."""
        phrase = PHRASES[self.language]
        terse, tight, digits = self._chance(0.3), self._chance(0.5), self._chance(0.12)
        if self.scene.layout == "count":
            thing = things[0]
            return [
                phrase(
                    thing.kind, thing.tint if tinted else None, count=len(things), digits=digits, tight=tight
                )
            ]
        words = _size_words(self.scene) if sizes else [None] * len(things)
        return [
            phrase(thing.kind, thing.tint if tinted else None, word, terse=terse, tight=tight or terse)
            for thing, word in zip(things, words, strict=True)
        ]

    def _on_backdrop(self, core: str, photo: bool) -> str:
        sentence = core.endswith(("ある", "いる"))  # nothing follows the verb of a Japanese sentence
        first = not photo and (sentence or self._chance(0.25))
        return self._fill("backdrop first" if first else "backdrop", core=core, g=self.ground)

    def _light(self, key: str) -> str:
        return self._fill(key, **self._side(-1 if self.scene.light == "left" else 1))

    def _side(self, x: float) -> dict[str, str]:
        side, further = SIDES[self.language]["left" if x < 0 else "right"]
        return {"side": side, "further": further}

    def _sentences(self, clauses: list[str]) -> str:
        if self.language in ("zh", "ja"):
            return "".join(f"{clause}。" for clause in clauses)
        return " ".join(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)

    def _fill(self, key: str, photo: bool = False, **slots: object) -> str:
        return self._pick(self.templates[f"{key} photo" if photo else key]).format(**slots)

    def _pick(self, templates: tuple[str, ...]) -> str:
        """Choose a template; the first and plainest one is the most likely."""
        return templates[0] if self._chance(0.4) else self.rng.choice(templates)

    def _chance(self, share: float) -> bool:
        return self.rng.random() < share

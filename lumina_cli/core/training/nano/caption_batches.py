"""What the nano captioner learns to write: captions of scenes, and rows of tokens made of them.

B rows of a batch, T tokens of a row.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lumina_cli.core.nano.caption_parser import order_of
from lumina_cli.core.nano.captioner import ANSWER, GRID, IMAGE
from lumina_cli.core.nano.captions import LANGUAGES, LEVELS, Style, describe_scene
from lumina_cli.core.nano.scene import INVERSE, LIGHTS, Scene

TRIES = 16  # tellings of a scene until one passes the checks of captions
_WHOLE = Style(photo=0.1, tintless=0, tintless_photo=0, stated=1, sizes=True, rendered=1)
STYLES = {"detailed": _WHOLE, "medium": _WHOLE, "short": replace(_WHOLE, sizes=False)}
PAIRS = [(level, lang) for level in LEVELS for lang in LANGUAGES]


@dataclass(frozen=True)
class PromptSet:
    """How captions are asked for and what passes as one: what `lumina caption`, another stage, says of it.

    picture(level, lang)        the question about a picture
    rewrite(text, level, lang)  the question for a caption that says what the caption `text` says
    passes(text, level, lang)   whether a text may be an answer
    """

    picture: Callable[[str, str], str]
    rewrite: Callable[[str, str, str], str]
    passes: Callable[[str, str, str], bool]

    def around(self, level: str, lang: str) -> tuple[str, str]:
        """Return what stands before and after the text that is to be rewritten."""
        before, after = self.rewrite("\0", level, lang).split("\0")
        return before.lstrip(), after.rstrip()

    def pieces(self) -> list[str]:
        """Return every piece of a question that is always the same."""
        around = [piece for pair in PAIRS for piece in self.around(*pair) if piece]
        return [self.picture(*pair) for pair in PAIRS] + around


def mirrored(scene: Scene) -> Scene:
    """Return the scene whose picture is the given one's, turned left to right."""
    things = tuple(replace(thing, x=-thing.x, turn=-thing.turn) for thing in scene.things)
    relation = INVERSE[scene.relation] if scene.relation in ("left of", "right of") else scene.relation
    if scene.layout in ("pair", "group"):  # told from left to right
        things = things[::-1]
    light = LIGHTS[1 - LIGHTS.index(scene.light)]
    return Scene(scene.layout, things, relation, scene.backdrop, light)


def in_order(scene: Scene) -> Scene:
    """Return the same scene told from its left, upper or nearer thing.

    A pair side by side looks like two things of which one is left of the other, so it is told as such.
    """
    if scene.layout == "pair":
        return replace(scene, layout="relation", relation="left of")
    if scene.relation not in ("right of", "below", "behind"):
        return scene
    return replace(scene, things=scene.things[::-1], relation=INVERSE[scene.relation])


def describing(scene: Scene, level: str, lang: str, rng: random.Random, asking: PromptSet) -> str:
    """Return a caption that leaves out no tint and no relation, and passes the checks if any does.

    It names things from left to right, from top to bottom or from front to back: what to name next is then a
    matter of the picture alone, which is learnt sooner than how any two of its things stand to each other.
    """
    scene = in_order(scene)
    kinds = list(dict.fromkeys(thing.kind for thing in scene.things))
    best = ""
    for _ in range(TRIES):
        text = describe_scene(scene, lang, level, rng.randrange(1 << 30), STYLES)
        if order_of(text, lang) == kinds:
            if asking.passes(text, level, lang):
                return text
            best = max(best, text, key=len)
    return best or text


class Writer:
    """Turns scenes into rows of tokens: [begin, picture] and then captions, each with its question."""

    def __init__(self, tokenizer: Any, asking: PromptSet):
        self.tokenizer, self.asking = tokenizer, asking
        one = tokenizer.convert_tokens_to_ids
        self.begin, self.end, self.answer = tokenizer.bos_token_id, tokenizer.eos_token_id, one(ANSWER)
        self.prefix = [self.begin] + [one(IMAGE)] * (GRID * GRID)

    def about_pictures(self, scenes: Sequence[Scene], captions: int, rng: random.Random) -> dict[str, Tensor]:
        """Return a batch whose rows hold a picture and several captions of it."""
        pairs = [pair for _ in scenes for pair in rng.sample(PAIRS, captions)]
        shown = [scene for scene in scenes for _ in range(captions)]
        told = [describing(scene, *pair, rng, self.asking) for scene, pair in zip(shown, pairs, strict=True)]
        parts = self._parts([self.asking.picture(*pair) for pair in pairs], told)
        rows = [self._row(self.prefix, parts[i : i + captions]) for i in range(0, len(parts), captions)]
        return self._padded(rows)

    def rewritten(self, scenes: Sequence[Scene], rng: random.Random) -> dict[str, Tensor]:
        """Return a batch whose rows hold a detailed caption and another one that says the same."""
        asked, told = [], []
        for scene in scenes:
            level, lang = rng.choice(PAIRS)
            text = describing(scene, "detailed", rng.choice(LANGUAGES), rng, self.asking)
            asked.append(self.asking.rewrite(text, level, lang))
            told.append(describing(scene, level, lang, rng, self.asking))
        return self._padded([self._row([self.begin], [part]) for part in self._parts(asked, told)])

    def _parts(self, asked: list[str], told: list[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each question with the sign to answer, and of each answer with its end."""
        asked, told = (self.tokenizer(texts, add_special_tokens=False).input_ids for texts in (asked, told))
        return [([*q, self.answer], [*t, self.end]) for q, t in zip(asked, told, strict=True)]

    def _row(self, prefix: list[int], parts: list[tuple[list[int], list[int]]]) -> tuple[list[int], ...]:
        """Tokens and places; owner, 0 for what all parts see; and spoken, 1 for what is to be foretold."""
        tokens, places = list(prefix), list(range(len(prefix)))
        owner, spoken = [0] * len(prefix), [0] * len(prefix)
        for number, (question, text) in enumerate(parts, 1):
            size = len(question) + len(text)
            tokens += question + text
            places += range(len(prefix), len(prefix) + size)
            owner += [number] * size
            spoken += [0] * len(question) + [1] * len(text)
        return tokens, places, owner, spoken

    def _padded(self, rows: list[tuple[list[int], ...]]) -> dict[str, Tensor]:
        """Return tokens and places (B, T), mask (B, 1, T, T), and which tokens are to be foretold (B, T)."""
        length = max(len(row[0]) for row in rows)
        fills = (self.tokenizer.pad_token_id, 0, -1, 0)
        tokens, places, owner, spoken = (
            torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate(fills)
        )
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        sees = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        return {
            "tokens": tokens,
            "places": places,
            "mask": (sees & earlier)[:, None],
            "spoken": spoken.bool(),
        }

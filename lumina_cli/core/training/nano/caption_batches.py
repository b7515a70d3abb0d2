"""Training texts of the nano captioner: captions of scenes, and batches of token rows made from them.

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

TRIES = 16  # captions generated for a scene until one passes the checks
_WHOLE = Style(photo=0.1, tintless=0, tintless_photo=0, stated=1, sizes=True, rendered=1)
STYLES = {"detailed": _WHOLE, "medium": _WHOLE, "short": replace(_WHOLE, sizes=False)}
PAIRS = [(level, lang) for level in LEVELS for lang in LANGUAGES]


@dataclass(frozen=True)
class PromptSet:
    """The prompts of `lumina caption` and its check of captions, which the command line passes in.

    describe(level, lang)       the prompt for a caption of an image
    rewrite(text, level, lang)  the prompt for a caption with the content of the caption `text`
    passes(text, level, lang)   whether a text is a valid caption
    """

    describe: Callable[[str, str], str]
    rewrite: Callable[[str, str, str], str]
    passes: Callable[[str, str, str], bool]

    def around(self, level: str, lang: str) -> tuple[str, str]:
        """Return the prompt before and after the text to rewrite."""
        before, after = self.rewrite("\0", level, lang).split("\0")
        return before.lstrip(), after.rstrip()

    def pieces(self) -> list[str]:
        """Return the constant pieces of all prompts."""
        around = [piece for pair in PAIRS for piece in self.around(*pair) if piece]
        return [self.describe(*pair) for pair in PAIRS] + around


def mirrored(scene: Scene) -> Scene:
    """Return the scene whose image is that of `scene`, flipped horizontally."""
    things = tuple(replace(thing, x=-thing.x, turn=-thing.turn) for thing in scene.things)
    relation = INVERSE[scene.relation] if scene.relation in ("left of", "right of") else scene.relation
    if scene.layout in ("pair", "group"):  # their objects are described from left to right
        things = things[::-1]
    light = LIGHTS[1 - LIGHTS.index(scene.light)]
    return Scene(scene.layout, things, relation, scene.backdrop, light)


def in_order(scene: Scene) -> Scene:
    """Return the same scene, described from its left, upper or nearer object.

    A pair side by side has the same image as two objects in the relation "left of", and is described so.
    """
    if scene.layout == "pair":
        return replace(scene, layout="relation", relation="left of")
    if scene.relation not in ("right of", "below", "behind"):
        return scene
    return replace(scene, things=scene.things[::-1], relation=INVERSE[scene.relation])


def draw_caption(scene: Scene, level: str, lang: str, rng: random.Random, prompts: PromptSet) -> str:
    """Return a caption with all tints and relations; it passes the checks if one of TRIES attempts does.

    It names objects from left to right, from top to bottom or from front to back. The next object to name
    then depends on the image alone, which is learned faster than the relation of any two objects.
    """
    scene = in_order(scene)
    kinds = list(dict.fromkeys(thing.kind for thing in scene.things))
    best = ""
    for _ in range(TRIES):
        text = describe_scene(scene, lang, level, rng.randrange(1 << 30), STYLES)
        if order_of(text, lang) == kinds:
            if prompts.passes(text, level, lang):
                return text
            best = max(best, text, key=len)
    return best or text


class CaptionWriter:
    """Builds batches of token rows from scenes: <bos>, image, and then captions, each after its prompt.

    A batch contains

        tokens  (B, T)        token ids
        places  (B, T)        positions; each caption continues from the image, so that it can be packed
        mask    (B, 1, T, T)  True if a token attends to another one
        spoken  (B, T)        True for the tokens to predict
    """

    def __init__(self, tokenizer: Any, prompts: PromptSet):
        self.tokenizer, self.prompts = tokenizer, prompts
        one = tokenizer.convert_tokens_to_ids
        self.begin, self.end, self.answer = tokenizer.bos_token_id, tokenizer.eos_token_id, one(ANSWER)
        self.prefix = [self.begin] + [one(IMAGE)] * (GRID * GRID)

    def image_rows(self, scenes: Sequence[Scene], captions: int, rng: random.Random) -> dict[str, Tensor]:
        """Return a batch of one row per scene: its image and `captions` captions of it."""
        pairs = [pair for _ in scenes for pair in rng.sample(PAIRS, captions)]
        shown = [scene for scene in scenes for _ in range(captions)]
        answers = [
            draw_caption(scene, *pair, rng, self.prompts) for scene, pair in zip(shown, pairs, strict=True)
        ]
        parts = self._parts([self.prompts.describe(*pair) for pair in pairs], answers)
        rows = [self._row(self.prefix, parts[i : i + captions]) for i in range(0, len(parts), captions)]
        return self._padded(rows)

    def rewrite_rows(self, scenes: Sequence[Scene], rng: random.Random) -> dict[str, Tensor]:
        """Return a batch of one row per scene: a detailed caption and another one with the same content."""
        questions, answers = [], []
        for scene in scenes:
            level, lang = rng.choice(PAIRS)
            text = draw_caption(scene, "detailed", rng.choice(LANGUAGES), rng, self.prompts)
            questions.append(self.prompts.rewrite(text, level, lang))
            answers.append(draw_caption(scene, level, lang, rng, self.prompts))
        return self._padded([self._row([self.begin], [part]) for part in self._parts(questions, answers)])

    def _parts(self, questions: list[str], answers: list[str]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each prompt with the answer token, and of each answer with the end token."""
        tokenize = self.tokenizer
        asked, given = (tokenize(texts, add_special_tokens=False).input_ids for texts in (questions, answers))
        return [([*p, self.answer], [*a, self.end]) for p, a in zip(asked, given, strict=True)]

    def _row(self, prefix: list[int], parts: list[tuple[list[int], list[int]]]) -> tuple[list[int], ...]:
        """Return tokens, places, owner (0: the prefix, else the number of a caption) and spoken of a row."""
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
        """Return rows as a batch, padded on the right."""
        length = max(len(row[0]) for row in rows)
        fills = (self.tokenizer.pad_token_id, 0, -1, 0)
        tokens, places, owner, spoken = (
            torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate(fills)
        )
        # A token attends to earlier tokens of its own caption and of the prefix, not to other captions.
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        related = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        return {
            "tokens": tokens,
            "places": places,
            "mask": (related & earlier)[:, None],
            "spoken": spoken.bool(),
        }

"""GenEval's prompts: the official 553, regenerated from their seed, and the six tasks over the nano kinds.

A prompt row is the official record (`tag`, `include`, `exclude` for counting, `prompt`); nano rows add
`language` and `held_out`. An item of `include` has `class` and `count`, and optionally `color` or `position`
(a relation and the index of the item that it relates to).
Source: GenEval (arXiv 2310.11513); the odd plurals ("benchs") are part of the benchmark.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np

from lumina_cli.core.errors import UsageError
from lumina_cli.core.nano.captions import LANGUAGES, prompt_for
from lumina_cli.core.nano.scene import KINDS, TINTS, held_out_pairs, held_out_triples

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
POSITIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SPLITS = ("test", "held-out")
# COCO's 80 classes in COCO's order; GenEval writes "computer mouse", "tv remote" and "computer keyboard".
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
NUMBERS = {2: "two", 3: "three", 4: "four"}
OFFICIAL_SEED = 43
OFFICIAL_PER_TASK = 100


def official_prompts() -> list[dict]:
    """Return GenEval's 553 rows; written as JSON Lines, they equal the official file byte for byte."""
    rng = np.random.default_rng(OFFICIAL_SEED)
    rows = [
        _row("single_object", [_item(COCO[i])], _article(COCO[i]))
        for i in rng.choice(80, size=80, replace=False)
    ]
    for task in (_official_two, _official_count, _official_color, _official_position, _official_attribution):
        rows += [task(rng) for _ in range(OFFICIAL_PER_TASK)]
    return _without_repeats(rows)


def _official_two(rng: np.random.Generator) -> dict:
    a, b = (COCO[i] for i in rng.choice(80, size=2, replace=False))
    return _row("two_object", [_item(a), _item(b)], f"{_article(a)} and {_article(b)}")


def _official_count(rng: np.random.Generator) -> dict:
    name = COCO[rng.choice(80)]
    count = int(rng.integers(2, 4, endpoint=True))
    plural = name + ("es" if name.endswith("s") else "s")
    return _row(
        "counting", [_item(name, count)], f"{NUMBERS[count]} {plural}", exclude=[_item(name, count + 1)]
    )


def _official_color(rng: np.random.Generator) -> dict:
    name = COCO[rng.choice(79) + 1]  # GenEval never gives a person a color
    color = COLORS[rng.choice(10)]
    return _row("colors", [_item(name, color=color)], f"{_article(color)} {name}")


def _official_position(rng: np.random.Generator) -> dict:
    a, b = (COCO[i] for i in rng.choice(80, size=2, replace=False))
    relation = POSITIONS[rng.choice(4)]
    return _row("position", _related(a, relation, b), f"{_article(a)} {relation} {_article(b)}")


def _official_attribution(rng: np.random.Generator) -> dict:
    a, b = (COCO[i + 1] for i in rng.choice(79, size=2, replace=False))
    first, second = (COLORS[i] for i in rng.choice(10, size=2, replace=False))
    items = [_item(a, color=first), _item(b, color=second)]
    return _row("color_attr", items, f"{_article(first)} {a} and {_article(second)} {b}")


def _item(name: str, count: int = 1, color: str | None = None) -> dict:
    return {"class": name, "count": count} | ({"color": color} if color else {})


def _related(a: str, relation: str, b: str) -> list[dict]:
    """The clauses of "a `relation` b": the second item is placed, the first is what it relates to."""
    return [_item(b), _item(a) | {"position": [relation, 0]}]


def _row(tag: str, include: list[dict], words: str, exclude: list[dict] | None = None) -> dict:
    row = {"tag": tag, "include": include}
    if exclude:
        row["exclude"] = exclude
    return row | {"prompt": f"a photo of {words}"}


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _without_repeats(rows: list[dict]) -> list[dict]:
    kept: list[dict] = []
    for row in rows:
        if row not in kept:
            kept.append(row)
    return kept


def nano_prompts(per_task: int = 40, language: str = "en", seed: int = 0, split: str = "test") -> list[dict]:
    """Return `per_task` rows of each of the six tasks; all languages request the same things.

    The split "test" excludes the combinations held out of training; "held-out" has only these, for the three
    tasks that have any (colors, position, color_attr). A task with fewer distinct prompts than `per_task`
    (there are 16 kinds) repeats them; each repeat gets its own noise.

    Raises:
        UsageError: if `split`, `language` or `per_task` is not valid.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if language not in LANGUAGES:
        raise UsageError(f"unknown language {language!r}; choose from {', '.join(LANGUAGES)}")
    if per_task < 1:
        raise UsageError(f"--per-task is {per_task}; it must be at least 1")
    rows = []
    for tag in TAGS:
        choices = list(_nano_choices(tag, held_out=split == "held-out"))
        random.Random(f"{seed}/{tag}/{split}").shuffle(choices)
        rows += [
            _nano_row(tag, *choices[i % len(choices)], language, split)
            for i in range(per_task if choices else 0)
        ]
    return rows


def _nano_choices(tag: str, held_out: bool) -> Iterator[tuple[list[tuple[str, str | None]], str | None, int]]:
    """Yield (things as (kind, tint), relation, count) for every possible prompt of a task."""
    pairs, triples = set(held_out_pairs()), set(held_out_triples())
    tinted = [(kind, tint) for kind in KINDS for tint in TINTS if ((tint, kind) in pairs) == held_out]
    different = [(a, b) for a in KINDS for b in KINDS if a != b]
    if tag == "colors":
        yield from (([thing], None, 1) for thing in tinted)
    elif tag == "color_attr":
        yield from (([a, b], None, 1) for a in tinted for b in tinted if a[0] != b[0] and a[1] != b[1])
    elif tag == "position":
        found = [(a, r, b) for a, b in different for r in POSITIONS if ((a, r, b) in triples) == held_out]
        yield from (([(a, None), (b, None)], relation, 1) for a, relation, b in found)
    elif held_out:
        return  # these tasks have neither tints nor relations, so nothing was held out
    elif tag == "single_object":
        yield from (([(kind, None)], None, 1) for kind in KINDS)
    elif tag == "two_object":
        yield from (([(a, None), (b, None)], None, 1) for a, b in different)
    else:
        yield from (([(kind, None)], None, count) for kind in KINDS for count in NUMBERS)


def _nano_row(
    tag: str, things: Sequence, relation: str | None, count: int, language: str, split: str
) -> dict:
    row: dict = {"tag": tag, "include": [_item(kind, count, tint) for kind, tint in things]}
    if relation:
        row["include"] = _related(things[0][0], relation, things[1][0])
    if tag == "counting":
        row["exclude"] = [_item(things[0][0], count + 1)]
    prompt = prompt_for(tag, things, relation=relation, count=count, language=language)
    return row | {"prompt": prompt, "language": language, "held_out": split == "held-out"}

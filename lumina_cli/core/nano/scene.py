"""Synthetic scenes for nano: objects with a kind, a tint and a position, sampled by seed.

A scene is plain data (and JSON): `rendering` draws it, `captions.py` describes it, the detector reads it
back. World axes: x to the right, y up from the floor, z towards the viewer; an object of size 1 is about one
unit high.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

KINDS = (
    "ball", "cube", "cylinder", "cone", "ring", "star", "heart", "house",
    "tree", "mushroom", "car", "boat", "cup", "lamp", "snowman", "rocket",
)  # fmt: skip
TINTS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)  # GenEval's ten
BACKDROPS = ("sky", "sand", "mint", "rose", "slate", "mist")
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
LIGHTS = ("left", "right")
LAYOUTS = {"single": 0.16, "relation": 0.46, "pair": 0.10, "count": 0.18, "group": 0.10}
HEIGHTS = dict(
    zip(
        KINDS,
        (1.0, 0.82, 1.02, 1.12, 1.08, 1.1, 1.2, 1.06, 1.2, 0.92, 0.68, 1.16, 0.86, 1.1, 1.24, 1.26),
        strict=True,
    )
)  # of an object of size 1
HELD_OUT_PAIRS = 15  # of the 160 (tint, kind) pairs
HELD_OUT_TRIPLES = 50  # of the 1,440 (kind, relation, kind) triples of different kinds


@dataclass(frozen=True)
class Thing:
    """An object: kind, tint, center of its foot (x, y, z), size, and rotation about y in degrees (`turn`)."""

    kind: str
    tint: str
    x: float
    y: float
    z: float
    size: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """Objects in front of a backdrop.

    layout    "single": one object; "relation": things[0] is in `relation` to things[1]; "pair": two objects
              side by side, without a relation; "count": 2 to 4 equal objects; "group": three different
              objects in a row, from left to right
    relation  one of RELATIONS in the layout "relation", else None
    light     the side that the light comes from
    """

    layout: str
    things: tuple[Thing, ...]
    relation: str | None
    backdrop: str
    light: str

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "Scene":
        things = tuple(Thing(**thing) for thing in value["things"])
        return cls(value["layout"], things, value["relation"], value["backdrop"], value["light"])


def _lowest(words: list[str], count: int) -> frozenset[str]:
    """Return the `count` entries with the lowest hash: a fixed choice, independent of any random state."""
    return frozenset(
        sorted(words, key=lambda word: hashlib.sha256(f"held out {word}".encode()).digest())[:count]
    )


_PAIRS = _lowest([f"{tint} {kind}" for tint in TINTS for kind in KINDS], HELD_OUT_PAIRS)
INVERSE = dict(
    zip(RELATIONS, ("right of", "left of", "below", "above", "behind", "in front of"), strict=True)
)
# "a left of b" and "b right of a" show the same image, so a triple is held out with its inverse.
_TRIPLES = _lowest(
    [f"{a} {relation} {b}" for a in KINDS for relation in RELATIONS[::2] for b in KINDS if a != b],
    HELD_OUT_TRIPLES // 2,
)


def _is_held_out_triple(a: str, relation: str, b: str) -> bool:
    return f"{a} {relation} {b}" in _TRIPLES or f"{b} {INVERSE[relation]} {a}" in _TRIPLES


def held_out_pairs() -> list[tuple[str, str]]:
    """Return the (tint, kind) pairs that no training scene shows."""
    return [(tint, kind) for tint in TINTS for kind in KINDS if f"{tint} {kind}" in _PAIRS]


def held_out_triples() -> list[tuple[str, str, str]]:
    """Return the (kind, relation, kind) triples that no training scene shows."""
    triples = [(a, r, b) for a in KINDS for r in RELATIONS for b in KINDS]
    return [triple for triple in triples if _is_held_out_triple(*triple)]


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene shows a held-out combination; depends on the scene alone."""
    if any(f"{thing.tint} {thing.kind}" in _PAIRS for thing in scene.things):
        return True
    kinds = [thing.kind for thing in scene.things]
    if scene.layout == "relation":
        return _is_held_out_triple(kinds[0], scene.relation, kinds[1])
    if scene.layout == "count":
        return False
    return any(
        _is_held_out_triple(a, "left of", b) for a, b in combinations(kinds, 2)
    )  # a row, left to right


def draw_scene(seed: int, index: int, held_out: bool = False) -> Scene:
    """Return scene `index` of the infinite sequence of `seed`, without or only with held-out combinations."""
    rng = random.Random(f"{seed}/{index}/{held_out}")
    while True:
        scene = _draw(rng)
        if is_held_out(scene) == held_out:
            return scene


def draw_scenes(seed: int, count: int, held_out: bool = False) -> Iterator[Scene]:
    """Yield scenes 0 to `count` - 1 of a seed."""
    return (draw_scene(seed, index, held_out) for index in range(count))


def _draw(rng: random.Random) -> Scene:
    layout = rng.choices(list(LAYOUTS), weights=list(LAYOUTS.values()))[0]
    relation = rng.choice(RELATIONS) if layout == "relation" else None
    number = {"single": 1, "relation": 2, "pair": 2, "group": 3}.get(layout) or rng.choice((2, 3, 4))
    if layout == "count":
        looks = [(rng.choice(KINDS), rng.choice(TINTS))] * number
    elif layout == "single":
        looks = [(rng.choice(KINDS), rng.choice(TINTS))]
    else:  # different kinds and mostly different tints: models learn attribute binding last
        kinds = rng.sample(KINDS, number)
        tints = rng.sample(TINTS, number) if rng.random() < 0.85 else [rng.choice(TINTS)] * number
        looks = list(zip(kinds, tints, strict=True))
    places = PLACES[layout](rng, relation, number)
    if relation in ("above", "below"):  # the upper object starts at the top of the lower one
        upper, lower = (0, 1) if relation == "above" else (1, 0)
        x, gap, z, size = places[upper]
        places[upper] = (x, HEIGHTS[looks[lower][0]] * places[lower][3] + gap, z, size)
    things = tuple(
        Thing(kind, tint, *(round(v, 3) for v in place), round(rng.uniform(-35, 35), 1))
        for (kind, tint), place in zip(looks, places, strict=True)
    )
    return Scene(layout, things, relation, rng.choice(BACKDROPS), rng.choice(LIGHTS))


def _single(rng: random.Random, relation: str | None, number: int) -> list[tuple[float, ...]]:
    return [(rng.uniform(-0.35, 0.35), 0.0, rng.uniform(-0.2, 0.3), rng.uniform(1.05, 1.6))]


def _row(rng: random.Random, relation: str | None, number: int) -> list[tuple[float, ...]]:
    """Place objects side by side from left to right, with a gap between neighbors."""
    step, size = {2: (1.45, (0.88, 1.08)), 3: (0.94, (0.62, 0.74))}[number]
    first = -step * (number - 1) / 2 + rng.uniform(-0.06, 0.06)
    jitter = 0.06 if number == 2 else 0.03
    return [
        (first + i * step + rng.uniform(-jitter, jitter), 0.0, rng.uniform(-0.25, 0.25), rng.uniform(*size))
        for i in range(number)
    ]


def _related(rng: random.Random, relation: str | None, number: int) -> list[tuple[float, ...]]:
    """Return two positions; the first is in `relation` to the second."""
    if relation in ("left of", "right of"):
        places = _row(rng, None, 2)
        return places if relation == "left of" else places[::-1]
    x = rng.uniform(-0.3, 0.3)
    if relation in ("above", "below"):  # the upper object rests on the lower one or hovers above it
        low, high = rng.uniform(0.74, 0.86), rng.uniform(0.7, 0.82)
        upper = (x + rng.uniform(-0.12, 0.12), rng.choice((0.0, rng.uniform(0.06, 0.18))), 0.0, high)
        lower = (x, 0.0, 0.0, low)
        return [upper, lower] if relation == "above" else [lower, upper]
    side = rng.choice((-1, 1)) * rng.uniform(0.3, 0.5)
    front = (x + side, 0.0, rng.uniform(0.85, 1.1), rng.uniform(0.78, 0.92))
    back = (x - side, 0.0, rng.uniform(-1.2, -0.9), rng.uniform(0.95, 1.15))
    return [front, back] if relation == "in front of" else [back, front]


def _counted(rng: random.Random, relation: str | None, number: int) -> list[tuple[float, ...]]:
    """Place equal objects on a jittered grid, far enough apart to be counted."""
    spots = {
        2: [(-0.75, 0.0), (0.75, 0.0)],
        3: rng.choice(([(-0.92, 0.1), (0.0, 0.1), (0.92, 0.1)], [(-0.72, 0.7), (0.72, 0.7), (0.0, -1.1)])),
        4: [(-0.72, 0.75), (0.72, 0.75), (-0.8, -1.25), (0.8, -1.25)],
    }[number]
    size = {2: 0.98, 3: 0.68, 4: 0.7}[number] * rng.uniform(0.94, 1.06)
    return [(x + rng.uniform(-0.09, 0.09), 0.0, z + rng.uniform(-0.09, 0.09), size) for x, z in spots]


PLACES = {"single": _single, "relation": _related, "pair": _row, "count": _counted, "group": _row}

"""Correctness of captions of nano scenes: precision and recall of their facts, per level and language.

Facts are objects, colors (object and tint), counts (object and number) and relations, over all captions of a
kind. Precision is the fraction of stated facts that are true. Recall is the fraction of expected facts that
are stated: every object, tint and number, and the relation of the scene; a detailed caption should also state
the left-to-right order of a row. A missing caption states nothing.

Each score comes with that of the prior: the best constant answer for these images.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.provenance import BROUGHT, caption_provenance
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.nano.caption_parser import Facts, facts_of, main_relations, parse_caption
from lumina_cli.core.nano.captions import LANGUAGES, LEVELS
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, LAYOUTS, LIGHTS, RELATIONS, TINTS, Scene

Captions = frozenset[Hashable]
ASPECTS: dict[str, Callable[[Facts], Captions]] = {
    "objects": lambda facts: facts.kinds,
    "colours": lambda facts: facts.tints,
    "counts": lambda facts: facts.counts,
    "relations": lambda facts: facts.relations,
}
FAR = 1000  # limit of the numbers in a scene: world units, and degrees
NO_FACTS = Facts(frozenset(), frozenset(), frozenset(), frozenset(), None, None)


def scene_of(row: dict) -> Scene | None:
    """Return the nano scene under "scene" of a row, or None if there is none or it has another format."""
    try:
        scene = Scene.from_json(row["scene"])
        numbers = [n for thing in scene.things for n in (thing.x, thing.y, thing.z, thing.size, thing.turn)]
        ours = (
            scene.layout in LAYOUTS
            and scene.backdrop in BACKDROPS
            and scene.light in LIGHTS
            and all(thing.kind in KINDS and thing.tint in TINTS for thing in scene.things)
            and (scene.relation is None or (scene.relation in RELATIONS and len(scene.things) == 2))
            and all(abs(number) <= FAR for number in numbers)
        )
    except (KeyError, TypeError):
        return None
    return scene if scene.things and ours else None


@dataclass
class Score:
    """Counts of stated, true, expected and found facts."""

    stated: int = 0
    true: int = 0
    expected: int = 0
    found: int = 0

    def add(self, stated: Captions, true: Captions, expected: Captions) -> None:
        self.stated += len(stated)
        self.true += len(stated & true)
        self.expected += len(expected)
        self.found += len(stated & expected)

    def to_row(self) -> dict[str, float | None]:
        """Return precision, recall and F1, or None for each if no fact was expected or stated."""
        if not self.expected and not self.stated:
            return {"precision": None, "recall": None, "f1": None}
        precision = self.true / self.stated if self.stated else 0.0
        recall = self.found / self.expected if self.expected else 1.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}


def score_captions(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield one row per language and level with the scores and priors of each aspect, then one overall.

    Rows need a nano "scene", as the rows of nano:N have; other rows are skipped. If rows name the engine of
    their captions, captions from other sources are skipped too.

    Raises:
        LuminaError: if no row has such a scene.
    """
    with_scenes = [(row, scene_of(row)) for row in caption_provenance(rows)]
    rows = [row for row, scene in with_scenes if scene]
    known = [(get_captions(row), scene) for row, scene in with_scenes if scene]
    if not known:
        foreign = sum(bool(row.get("scene")) for row, _ in with_scenes)
        others = f" ({foreign} have one in another format)" if foreign else ""
        raise LuminaError(
            f'no row has a "scene" of nano to compare its captions with{others}; rows of nano:N have one'
        )
    truths = [facts_of(scene) for _, scene in known]
    kinds = {(lang, level) for captions, _ in known for lang, texts in captions.items() for level in texts}
    total = {aspect: Score() for aspect in ASPECTS}
    number = 0
    for lang in LANGUAGES:
        for level in (level for level in LEVELS if (lang, level) in kinds):
            own = [i for i, row in enumerate(rows) if level not in row.get(BROUGHT, {}).get(lang, {})]
            texts = [known[i][0].get(lang, {}).get(level) for i in own]
            stated = [parse_caption(text, lang) if text else NO_FACTS for text in texts]
            number += sum(map(bool, texts))
            truth, scenes = [truths[i] for i in own], [known[i][1] for i in own]
            yield _row(lang, level, sum(map(bool, texts)), stated, truth, scenes, total)
    everything = {aspect: score.to_row() for aspect, score in total.items()}
    yield {"lang": "all", "level": "all", "captions": number} | everything


def _row(
    lang: str,
    level: str,
    number: int,
    stated: Sequence[Facts],
    truths: Sequence[Facts],
    scenes: Sequence[Scene],
    total: dict[str, Score],
) -> dict:
    row = {"lang": lang, "level": level, "captions": number}
    for aspect, pick in ASPECTS.items():
        true = [pick(truth) for truth in truths]
        expected = [main_relations(scene, level) for scene in scenes] if aspect == "relations" else true
        score = Score()
        for one, *against in zip(map(pick, stated), true, expected, strict=True):
            score.add(one, *against)
            total[aspect].add(one, *against)
        row[aspect] = score.to_row() | {"prior": _prior(true, expected)}
    return row


def _prior(true: Sequence[Captions], expected: Sequence[Captions]) -> dict[str, float | None]:
    """Return the best score of a constant answer: the most common facts, as many as maximize F1."""
    holds, requested = (Counter(fact for facts in sets for fact in facts) for sets in (true, expected))
    score = Score(expected=sum(requested.values()))
    best = score.to_row() if score.expected else {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for fact, _ in requested.most_common():
        score.stated += len(true)
        score.true += holds[fact]
        score.found += requested[fact]
        best = max(best, score.to_row(), key=lambda row: row["f1"])
    return best

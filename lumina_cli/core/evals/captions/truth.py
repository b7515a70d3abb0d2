"""How true captions of nano scenes are: precision and recall of what they say, per level and language.

Objects, colours (object and tint), counts (object and number) and relations are counted over all captions
of a kind. Precision is the share of what was said that is true. Recall is the share of what should be said
that was: every object, tint and number, and the relation that a scene has; a detailed caption should also
tell who stands left of whom in a row. A caption that is missing says nothing.

Beside each score stands that of the prior: one and the same answer to every picture, the best there is for
these very pictures.
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
FAR = 1000  # no number of a scene is larger: world units, and degrees
SILENT = Facts(frozenset(), frozenset(), frozenset(), frozenset(), None, None)


def scene_of(row: dict) -> Scene | None:
    """Return the nano scene that a row has as "scene"; None where it has none, or what others call so."""
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
    """What captions said, how much of it is true, and how much of what they should say they did."""

    said: int = 0
    true: int = 0
    wanted: int = 0
    found: int = 0

    def add(self, said: Captions, true: Captions, wanted: Captions) -> None:
        self.said += len(said)
        self.true += len(said & true)
        self.wanted += len(wanted)
        self.found += len(said & wanted)

    def to_row(self) -> dict[str, float | None]:
        """Return precision, recall and F1; None where there was nothing to say."""
        if not self.wanted and not self.said:
            return {"precision": None, "recall": None, "f1": None}
        precision = self.true / self.said if self.said else 0.0
        recall = self.found / self.wanted if self.wanted else 1.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}


def score_captions(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield a row per language and level with a score of each aspect beside the prior's, then one of all.

    Rows need a nano "scene" beside their captions, as those of nano:N have; others are passed over, and so,
    where rows tell which captions an engine wrote, are those that they brought. Raises LuminaError where no
    row has such a scene.
    """
    told = [(row, scene_of(row)) for row in caption_provenance(rows)]
    rows = [row for row, scene in told if scene]
    known = [(get_captions(row), scene) for row, scene in told if scene]
    if not known:
        foreign = sum(bool(row.get("scene")) for row, _ in told)
        others = f" ({foreign} have one of another kind)" if foreign else ""
        raise LuminaError(
            f'no row has a "scene" of nano to compare its captions with{others}; rows of nano:N do'
        )
    truths = [facts_of(scene) for _, scene in known]
    kinds = {(lang, level) for captions, _ in known for lang, texts in captions.items() for level in texts}
    total = {aspect: Score() for aspect in ASPECTS}
    number = 0
    for lang in LANGUAGES:
        for level in (level for level in LEVELS if (lang, level) in kinds):
            own = [i for i, row in enumerate(rows) if level not in row.get(BROUGHT, {}).get(lang, {})]
            texts = [known[i][0].get(lang, {}).get(level) for i in own]
            said = [parse_caption(text, lang) if text else SILENT for text in texts]
            number += sum(map(bool, texts))
            truth, scenes = [truths[i] for i in own], [known[i][1] for i in own]
            yield _row(lang, level, sum(map(bool, texts)), said, truth, scenes, total)
    everything = {aspect: score.to_row() for aspect, score in total.items()}
    yield {"lang": "all", "level": "all", "captions": number} | everything


def _row(
    lang: str,
    level: str,
    number: int,
    said: Sequence[Facts],
    truths: Sequence[Facts],
    scenes: Sequence[Scene],
    total: dict[str, Score],
) -> dict:
    row = {"lang": lang, "level": level, "captions": number}
    for aspect, pick in ASPECTS.items():
        true = [pick(truth) for truth in truths]
        wanted = [main_relations(scene, level) for scene in scenes] if aspect == "relations" else true
        score = Score()
        for one, *against in zip(map(pick, said), true, wanted, strict=True):
            score.add(one, *against)
            total[aspect].add(one, *against)
        row[aspect] = score.to_row() | {"prior": _prior(true, wanted)}
    return row


def _prior(true: Sequence[Captions], wanted: Sequence[Captions]) -> dict[str, float | None]:
    """Return what the same answer to every picture gets: the commonest facts, as many as make the best F1."""
    holds, asked = (Counter(fact for facts in sets for fact in facts) for sets in (true, wanted))
    score = Score(wanted=sum(asked.values()))
    best = score.to_row() if score.wanted else {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for fact, _ in asked.most_common():
        score.said += len(true)
        score.true += holds[fact]
        score.found += asked[fact]
        best = max(best, score.to_row(), key=lambda row: row["f1"])
    return best

"""GenEval's rules (arXiv 2310.11513): from detections to correct or incorrect, and to a summary.

Boxes are (x0, y0, x1, y1) in pixels, y down. An image is correct if the most confident detections of each
class satisfy every clause of `include` and no clause of `exclude`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.evals import bootstrap
from lumina_cli.core.evals.geneval.prompts import POSITIONS, TAGS, nano_prompts, official_prompts
from lumina_cli.core.evals.judges import Detection, Judge
from lumina_cli.core.images.io import open_image
from lumina_cli.core.nano.captions import LANGUAGES

MAX_THINGS = 16  # detections kept per class
SHRINK = 0.1  # fraction of both boxes' sizes that centers must be apart before a relation counts
Box = Sequence[float]
Detections = dict[str, list[Detection]]


def relations(a: Box, b: Box) -> set[str]:
    """Return the relations of box `a` to box `b`: left of, right of, above, below, or two of these."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    room = [SHRINK * (a[i + 2] - a[i] + b[i + 2] - b[i]) for i in (0, 1)]
    shrunk = [math.copysign(max(abs(o) - r, 0.0), o) for o, r in zip(offset, room, strict=True)]
    if all(abs(value) < 1e-3 for value in shrunk):
        return set()
    dx, dy = (value / math.hypot(*offset) for value in shrunk)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, held in holds.items() if held}


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes that include their last pixel, as GenEval does."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    inside = max(width, 0) * max(height, 0)
    area_a, area_b = ((x1 - x0 + 1) * (y1 - y0 + 1) for x0, y0, x1, y1 in (a, b))
    return inside / (area_a + area_b - inside)


def group_detections(found: Iterable[Detection], threshold: float, max_overlap: float = 1.0) -> Detections:
    """Group the detections above the threshold by class, most confident first.

    max_overlap    largest IoU of two kept detections of a class; 1 keeps all
    """
    detections: Detections = defaultdict(list)
    for thing in sorted(found, key=lambda thing: -thing.score):
        if thing.score > threshold and len(detections[thing.kind]) < MAX_THINGS:
            detections[thing.kind].append(thing)
    for kind, things in detections.items():
        kept: list[Detection] = []
        for thing in things:
            if max_overlap >= 1 or all(overlap(thing.box, other.box) <= max_overlap for other in kept):
                kept.append(thing)
        detections[kind] = kept
    return {kind: things for kind, things in detections.items() if things}


def check(detections: Detections, row: dict) -> tuple[bool, str]:
    """Return whether the detections satisfy the prompt row, and one line per failed clause."""
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in row["include"]:
        name, count = clause["class"], clause["count"]
        things = detections.get(name, [])[:count]
        reason = None
        if len(things) < count:
            reason = f"expected {name}>={count}, found {len(things)}"
        elif "color" in clause:
            reason = _wrong_color(clause, things)
        if reason is None and "position" in clause:
            reason = _wrong_position(clause, things, groups, row["include"])
        groups.append(things if reason is None else None)
        reasons += [reason] if reason else []
    for clause in row.get("exclude", []):
        found = len(detections.get(clause["class"], []))
        if found >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {found}")
    return not reasons, "\n".join(reasons)


def _wrong_color(clause: dict, things: list[Detection]) -> str | None:
    tints = [thing.tint for thing in things]
    if tints.count(clause["color"]) >= clause["count"]:
        return None
    found = " and ".join(f"{tints.count(tint)} {tint}" for tint in dict.fromkeys(tints))
    return f"expected {clause['color']} {clause['class']}>={clause['count']}, found {found}"


def _wrong_position(clause: dict, things: list, groups: list, include: list[dict]) -> str | None:
    relation, target = clause["position"]
    name, other = clause["class"], include[target]["class"]
    if groups[target] is None:
        return f"no {other} for {name} to be {relation}"
    for thing in things:
        for goal in groups[target]:
            holds = relations(thing.box, goal.box)
            if relation not in holds:
                found = " and ".join(sorted(holds)) or "neither side"
                return f"expected {name} {relation} {other}, found {found}"
    return None


def find_problem(row: dict, judge: Judge) -> str | None:
    """Return the problem of a prompt row (wrong form, or a class that the judge cannot detect), or None."""
    if row.get("tag") not in TAGS:
        return f"tag {row.get('tag')!r} is not one of GenEval's six ({', '.join(TAGS)})"
    include, exclude = row.get("include"), row.get("exclude", [])
    if not (include and isinstance(include, list) and isinstance(exclude, list) and "prompt" in row):
        return "needs 'prompt' and 'include', a list of required objects"
    for number, clause in enumerate([*include, *exclude]):
        if not (isinstance(clause, dict) and isinstance(clause.get("count"), int) and "class" in clause):
            return f"needs 'class' and a whole 'count' in {json.dumps(clause)}"
        name, color = clause["class"], clause.get("color")
        if name not in judge.kinds or (color and color not in judge.tints):
            what = " ".join(filter(None, (color, str(name))))
            return f"requests {what!r}; the {judge.name} judge detects only the {judge.name} kinds and tints"
        if "position" in clause and clause["position"] not in [
            [p, i] for p in POSITIONS for i in range(number)
        ]:
            return f"needs 'position' as [one of {', '.join(POSITIONS)}; index of an earlier item]"
    return None


class GenEval:
    """The benchmark: its prompts, its rules and its summary."""

    name = "geneval"
    score_names = ("geneval", *(f"geneval.{part}" for part in (*TAGS, *LANGUAGES)))

    def prompts(
        self,
        vocabulary: str = "nano",
        per_task: int = 40,
        languages: Sequence[str] = ("en",),
        seed: int = 0,
        split: str = "test",
    ) -> list[dict]:
        """Return the prompt rows of the "official" or "nano" vocabulary; nano rows language by language.

        Raises:
            UsageError: if a setting is unknown, or official prompts are requested in another language.
        """
        if vocabulary == "official":
            if list(languages) != ["en"] or split != "test":
                raise UsageError(
                    "GenEval's official prompts are English and have no held-out split; use --prompts nano"
                )
            return official_prompts()
        if vocabulary != "nano":
            raise UsageError(f"unknown prompts {vocabulary!r}; choose from nano, official")
        languages = dict.fromkeys(language.strip() for language in languages)
        return [row for language in languages for row in nano_prompts(per_task, language, seed, split)]

    def check(self, prompts: Iterable[tuple[str, dict]], judge: Judge) -> None:
        """Check (place, prompt row) pairs.

        Raises:
            LuminaError: at the first prompt row that the judge cannot score.
        """
        for place, row in prompts:
            if problem := find_problem(row, judge):
                raise LuminaError(f"{place}: {problem}")

    def score(
        self, images: Iterable[tuple[Path, dict]], judge: Judge, batch: int = 16, max_overlap: float = 1.0
    ) -> Iterator[dict]:
        """Yield one row per (path, prompt row): filename, tag, prompt, correct, reason, metadata and details.

        As in GenEval's own files, `metadata` (the prompt row) and `details` (class -> boxes with scores) are
        JSON strings. Reads one batch ahead.
        """
        images = iter(images)
        while group := list(islice(images, batch)):
            found = judge.detect([open_image(path) for path, _ in group])
            for (path, row), things in zip(group, found, strict=True):
                threshold = judge.thresholds.get(row["tag"], judge.thresholds["default"])
                detections = group_detections(things, threshold, max_overlap)
                correct, reason = check(detections, row)
                details = {
                    kind: [
                        [*(round(float(v), 3) for v in thing.box), round(float(thing.score), 5)]
                        for thing in kept
                    ]
                    for kind, kept in detections.items()
                }
                yield {
                    "filename": str(path),
                    "tag": row["tag"],
                    "prompt": row["prompt"],
                    "correct": correct,
                    "reason": reason,
                    "metadata": json.dumps(row, ensure_ascii=False),
                    "details": json.dumps(details),
                }

    def summarise(self, rows: Sequence[dict], seed: int = 0) -> dict:
        """Return the mean of each task and over tasks, with 95 % intervals, in total and per language.

        Raises:
            LuminaError: without rows.
        """
        if not rows:
            raise LuminaError("no image was scored")
        summary = {"benchmark": self.name} | _scores(rows, seed)
        languages = defaultdict(list)
        for row in rows:
            languages[json.loads(row["metadata"]).get("language", "en")].append(row)
        parts = {language: _scores(part, seed) for language, part in languages.items()}
        keep = ("overall", "ci95", "tasks")
        return summary | {
            "languages": {name: {key: part[key] for key in keep} for name, part in parts.items()}
        }


def by_prompt(rows: Iterable[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Group scored rows by task (in GenEval's order) and prompt metadata: (correct images, images)."""
    table: dict[str, dict[str, np.ndarray]] = {tag: {} for tag in TAGS}
    for row in rows:
        cell = table[row["tag"]].setdefault(row["metadata"], np.zeros(2, dtype=int))
        cell += (int(row["correct"]), 1)
    return {tag: prompts for tag, prompts in table.items() if prompts}


def _scores(rows: Sequence[dict], seed: int) -> dict:
    table = by_prompt(rows)
    strata = [np.stack(list(prompts.values())) for prompts in table.values()]
    means, samples = bootstrap.task_scores(strata), bootstrap.resample(strata, seed)
    everything = np.concatenate(strata)
    tasks = {
        tag: {
            "score": round(float(means[i]), 5),
            "ci95": bootstrap.interval(samples[:, i]),
            "prompts": len(strata[i]),
            "pictures": int(strata[i][:, 1].sum()),
        }
        for i, tag in enumerate(table)
    }
    return {
        "overall": round(float(means.mean()), 5),
        "ci95": bootstrap.interval(samples.mean(axis=1)),
        "tasks": tasks,
        "pictures_correct": round(float(everything[:, 0].sum() / everything[:, 1].sum()), 5),
        "prompts_any_correct": round(float((everything[:, 0] > 0).mean()), 5),
        "prompts": len(everything),
        "pictures": int(everything[:, 1].sum()),
    }

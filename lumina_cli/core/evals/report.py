"""Reports of an evaluation: files, a summary table, gates, and the comparison of two runs."""

import json
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lumina_cli.core.errors import GateFailed, LuminaError, UsageError
from lumina_cli.core.evals import bootstrap
from lumina_cli.core.evals.geneval.rules import by_prompt
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row, read_rows
from lumina_cli.core.io.remote import AnyPath
from lumina_cli.core.limits import read_json_file
from lumina_cli.core.registry import did_you_mean

OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Gate:
    """A required score, such as `geneval>=0.8`, or of one task or language, `geneval.counting>=0.6`."""

    name: str
    sign: str
    value: float

    @classmethod
    def parse(cls, text: str, known: Sequence[str] = ()) -> "Gate":
        """Parse "NAME>=VALUE".

        Raises:
            UsageError: if `text` has another form, or if `known` is given and does not contain the name.
        """
        match = re.fullmatch(r"\s*([\w.-]+)\s*(>=|<=|>|<)\s*([0-9.]+)\s*", text)
        try:
            gate = cls(match[1], match[2], float(match[3]))
        except (TypeError, ValueError):
            raise UsageError(f"--gate {text!r} is not a gate; write one like 'geneval>=0.8'") from None
        if known and gate.name not in known:
            raise UsageError(f"--gate {text!r}: no score {gate.name!r}{did_you_mean(gate.name, known)}")
        return gate

    def measure(self, summary: dict) -> float:
        """Return the score that the gate refers to.

        Raises:
            UsageError: if the summary does not have this score.
        """
        scores = scores_by_name(summary)
        if self.name not in scores:
            raise UsageError(f"--gate {self.name}: no such score; choose from {', '.join(scores)}")
        return scores[self.name]

    def check(self, summary: dict) -> None:
        """Compare the score with the gate.

        Raises:
            GateFailed: if the score does not satisfy the gate.
        """
        score = self.measure(summary)
        if not OPERATORS[self.sign](score, self.value):
            raise GateFailed(f"{self.name} is {score:.4f}; the gate requires {self.sign} {self.value:g}")


def scores_by_name(summary: dict) -> dict[str, float]:
    """Return all scores of a summary by the names that gates use."""
    name = summary["benchmark"]
    scores = {name: summary["overall"]}
    scores |= {f"{name}.{tag}": task["score"] for tag, task in summary["tasks"].items()}
    return scores | {f"{name}.{language}": part["overall"] for language, part in summary["languages"].items()}


def summary_table(summary: dict) -> list[dict]:
    """Return table rows: one per task, one per language if there are several, then the overall score."""
    rows = [
        {"score of": tag, "mean": _figure(task["score"]), "95 % CI": _range(task["ci95"])}
        | {"prompts": task["prompts"], "pictures": task["pictures"]}
        for tag, task in summary["tasks"].items()
    ]
    if len(summary["languages"]) > 1:
        rows += [
            {"score of": language, "mean": _figure(part["overall"]), "95 % CI": _range(part["ci95"])}
            for language, part in summary["languages"].items()
        ]
    overall = {"score of": "overall", "mean": _figure(summary["overall"]), "95 % CI": _range(summary["ci95"])}
    return [*rows, overall | {"prompts": summary["prompts"], "pictures": summary["pictures"]}]


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _range(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def write_scores(out: AnyPath, rows: Iterable[dict], summary: dict) -> None:
    """Write rows.jsonl and summary.json into a folder."""
    text = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
    lines = "".join(dump_row(row) + "\n" for row in rows)
    for name, content in (("rows.jsonl", lines), ("summary.json", text)):
        filesystem.write_file(str(out / name), content.encode())


def read_scores(place: Path) -> tuple[dict, list[dict]]:
    """Return the summary and the rows of a run.

        place    folder of the run, or its summary.json

    Raises:
        LuminaError: if a file is missing, is not JSON, or is not a summary of `lumina eval`.
    """
    named = place.is_file() or (place.suffix == ".json" and not place.is_dir())
    folder = place.parent if named else place
    path = folder / "summary.json"
    try:
        summary = read_json_file(path)
        rows = list(read_rows(folder / "rows.jsonl", key="correct"))
    except FileNotFoundError:
        raise LuminaError(f"{path}: missing; create it with `lumina eval geneval --out {folder}`") from None
    except ValueError as error:
        raise LuminaError(f"{path}: not JSON ({error})") from None
    if not isinstance(summary, dict) or not {"overall", "tasks"} <= summary.keys():
        raise LuminaError(f"{folder / 'summary.json'}: not a summary that `lumina eval` wrote")
    return summary, rows


def compare(first: Path, second: Path, seed: int = 0) -> list[dict]:
    """Return one row per task and an overall row: both scores on the common prompts, and their difference.

    The bootstrap is paired: both runs use the same resampled prompts. `differs` lists the settings of judge
    and prompts that differ between the runs.

    Raises:
        LuminaError: if the runs have no prompt in common, or one of them cannot be read.
    """
    (summary_a, rows_a), (summary_b, rows_b) = read_scores(first), read_scores(second)
    table_a, table_b = by_prompt(rows_a), by_prompt(rows_b)
    common = {tag: [key for key in table_a[tag] if key in table_b.get(tag, {})] for tag in table_a}
    common = {tag: keys for tag, keys in common.items() if keys}
    if not common:
        raise LuminaError(f"{first} and {second} have no prompt in common")
    a, b = (
        [np.stack([table[tag][key] for key in keys]) for tag, keys in common.items()]
        for table in (table_a, table_b)
    )
    means = np.stack([bootstrap.task_scores(a), bootstrap.task_scores(b)])  # (2, S)
    samples = bootstrap.paired_difference(a, b, seed)
    names = [*common, "overall"]
    means = np.concatenate([means, means.mean(axis=1, keepdims=True)], axis=1)
    samples = np.concatenate([samples, samples.mean(axis=1, keepdims=True)], axis=1)
    prompts = [*(len(keys) for keys in common.values()), sum(len(keys) for keys in common.values())]
    differs = _differs(summary_a.get("settings", {}), summary_b.get("settings", {}))
    return [
        {
            "task": name,
            "first": round(float(means[0, i]), 5),
            "second": round(float(means[1, i]), 5),
            "difference": round(float(means[1, i] - means[0, i]), 5),
            "ci95": bootstrap.interval(samples[:, i]),
            "prompts": prompts[i],
            "differs": differs,
        }
        for i, name in enumerate(names)
    ]


def _differs(a: dict, b: dict) -> list[str]:
    return [name for name in ("prompts", "split", "judge", "thresholds") if a.get(name) != b.get(name)]

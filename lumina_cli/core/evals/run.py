"""One evaluation: pictures that are drawn or found, judged as they come, and the files that stay."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lumina_cli.core.evals import report
from lumina_cli.core.evals.geneval.ground_truth import ground_truth_generator
from lumina_cli.core.evals.geneval.layout import ImageGenerator, generate_images, scan_images
from lumina_cli.core.evals.geneval.rules import GenEval
from lumina_cli.core.evals.judges import Judge

__all__ = ["Evaluation", "ground_truth_generator", "pipeline_generator"]

SYSTEM = "real"  # the system prompt before each prompt


def pipeline_generator(pipeline: Any, job: Callable[[str, int, int], Any], seed: int = 0) -> ImageGenerator:
    """Return a drawer that uses a sampling pipeline with its own plan; `job` makes what the pipeline draws.

    A picture's settings are those that `lumina sample` writes, so that it can be drawn again from the file.
    """

    def draw(rows: list[dict], numbers: list[int]) -> list[Image]:
        jobs = [job(row["prompt"], seed, number) for row, number in zip(rows, numbers, strict=True)]
        return pipeline.draw(jobs, system=SYSTEM)

    settings = {"model": pipeline.name, "weights": pipeline.weights_for(pipeline.plan), "seed": seed}
    settings |= {"size": list(pipeline.default_size), "system": SYSTEM, "plan": pipeline.plan.to_json()}
    return ImageGenerator(draw, settings)


class Evaluation:
    """Iterate it for a scored row per picture; then `summary` is there, and the files in `out` are written.

    `find` takes pictures that exist; `ask` and then `draw` make them. `total` is how many there are, and
    `settings` names whatever the scores depend on.
    """

    def __init__(
        self,
        benchmark: GenEval,
        judge: Judge,
        seed: int = 0,
        out: Path | None = None,
        batch: int = 16,
        gates: Sequence[str] = (),
    ):
        self.benchmark, self.judge, self.seed, self.out, self.batch = benchmark, judge, seed, out, batch
        self.gates = [report.Gate.parse(text, benchmark.score_names) for text in gates]
        self.settings: dict = {"judge": judge.name, "thresholds": dict(judge.thresholds), "seed": seed}
        if ceiling := getattr(judge, "ceiling", None):
            self.settings["judge_ceiling"] = ceiling
        self.summary: dict = {}

    def ask(self, prompts: str, per_task: int, languages: list[str], split: str) -> None:
        """Choose the prompts; raises LuminaError where the judge does not know what they name."""
        self.rows = self.benchmark.prompts(prompts, per_task, languages, self.seed, split)
        self.benchmark.check(((repr(row["prompt"]), row) for row in self.rows), self.judge)
        self.settings |= {"prompts": prompts, "per_task": per_task, "split": split}

    def draw(self, drawer: ImageGenerator, pictures: int) -> None:
        """Have `pictures` drawn for each prompt, into the folder `out`."""
        name = Path(str(drawer.settings["model"])).name
        self.out = self.out or Path("scores") / f"{self.benchmark.name}-{name}"
        self.settings |= drawer.settings | {"pictures": pictures}
        self.total = len(self.rows) * pictures
        self.pictures = generate_images(self.rows, drawer, self.out, pictures, self.batch)

    def find(self, folder: Path) -> None:
        """Take the pictures of a folder in GenEval's layout; raises LuminaError where it is not in it."""
        found = list(scan_images(folder))
        places = ((str(path.parents[1] / "metadata.jsonl"), row) for path, row in found)
        self.benchmark.check(places, self.judge)
        self.settings |= {"images": str(folder)}
        self.total, self.pictures = len(found), iter(found)

    def __iter__(self) -> Iterator[dict]:
        rows = []
        for row in self.benchmark.score(self.pictures, self.judge, self.batch):
            rows.append(row)
            yield row
        self.summary = self.benchmark.summarise(rows, self.seed) | {"settings": self.settings}
        if self.out:
            report.write_scores(self.out, rows, self.summary)

    @property
    def title(self) -> str:
        """What was scored, by whom, and where it is kept."""
        words = f"{self.benchmark.name}, {self.judge.name} judge"
        return f"{words}: rows.jsonl and summary.json in {self.out}" if self.out else words

    def table(self) -> list[dict]:
        """Return the summary as table rows."""
        return report.summary_table(self.summary)

    def check_gates(self) -> None:
        """Raise GateFailed at the first gate that does not hold."""
        for gate in self.gates:
            gate.check(self.summary)

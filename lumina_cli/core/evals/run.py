"""One evaluation: generate or find images, judge them batch by batch, and write the scores."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lumina_cli.core.evals import report
from lumina_cli.core.evals.batches import BatchItem, GeneratorOpener, evaluate_batch
from lumina_cli.core.evals.geneval.ground_truth import ground_truth_generator
from lumina_cli.core.evals.geneval.layout import (
    ImageGenerator,
    generate_images,
    plan_groups,
    scan_images,
    sweep_samples,
)
from lumina_cli.core.evals.geneval.rules import GenEval
from lumina_cli.core.evals.judges import Judge
from lumina_cli.core.images.suffixes import LeftOut
from lumina_cli.core.io.atomic import locked_folder
from lumina_cli.core.io.filesystem import make_dir
from lumina_cli.core.io.location import Location, to_text
from lumina_cli.core.io.parallel.workers import Workers, run_items
from lumina_cli.core.io.remote import to_path

__all__ = ["Evaluation", "ground_truth_generator", "pipeline_generator"]


def pipeline_generator(pipeline: Any, job: Callable[[str, int, int], Any], seed: int = 0) -> ImageGenerator:
    """Return a generator of images that calls a sampling pipeline with its own plan.

        job    (prompt, seed, noise number) -> the pipeline's request for one image

    Images carry the metadata that `lumina sample` writes, so `lumina sample --from` can regenerate them.
    """

    def generate(rows: list[dict], numbers: list[int]) -> list[Image]:
        jobs = [job(row["prompt"], seed, number) for row, number in zip(rows, numbers, strict=True)]
        return pipeline.generate(jobs, system=pipeline.default_system)

    settings = {"model": pipeline.name, "weights": pipeline.weights_for(pipeline.plan), "seed": seed}
    settings |= {
        "size": list(pipeline.default_size),
        "system": pipeline.default_system,
        "plan": pipeline.plan.to_json(),
    }
    return ImageGenerator(generate, settings, partial(pipeline.recognize, plan=pipeline.plan))


class Evaluation:
    """An evaluation; iterating it yields one scored row per image.

    Call `use_images` for existing images, or `choose_prompts` and then `generate` for new ones. After the
    iteration, `summary` is set and the files in `out` are written. `total` is the number of images;
    `settings` has everything that the scores depend on.
    """

    def __init__(
        self,
        benchmark: GenEval,
        judge: Judge,
        seed: int = 0,
        out: Location | None = None,
        batch: int = 16,
        gates: Sequence[str] = (),
    ):
        self.benchmark, self.judge, self.seed, self.batch = benchmark, judge, seed, batch
        self.out = to_path(out) if out else None
        self.gates = [report.Gate.parse(text, benchmark.score_names) for text in gates]
        self.settings: dict = {"judge": judge.name, "thresholds": dict(judge.thresholds), "seed": seed}
        if ceiling := getattr(judge, "ceiling", None):
            self.settings["judge_ceiling"] = ceiling
        self.summary: dict = {}
        self.scored: Iterator[dict] | None = None  # rows of workers

    def choose_prompts(self, prompts: str, per_task: int, languages: list[str], split: str) -> None:
        """Choose the prompts.

        Raises:
            LuminaError: if a prompt names an object or color that the judge cannot detect.
        """
        self.rows = self.benchmark.prompts(prompts, per_task, languages, self.seed, split)
        self.benchmark.check(((repr(row["prompt"]), row) for row in self.rows), self.judge)
        self.settings |= {"prompts": prompts, "per_task": per_task, "split": split}

    def generate(self, generator: ImageGenerator, pictures: int) -> None:
        """Generate `pictures` images per prompt into the folder `out`."""
        name = Path(str(generator.settings["model"])).name
        self.out = self.out or Path("scores") / f"{self.benchmark.name}-{name}"
        self.generated_by = generator.settings
        self.settings |= generator.settings | {"pictures": pictures}
        self.total = len(self.rows) * pictures
        self.images = generate_images(self.rows, generator, self.out, pictures, self.batch)

    def generate_on(
        self,
        workers: Workers,
        opener: GeneratorOpener,
        judge: tuple[str, str],
        pictures: int,
        notify: Callable[[str], None],
    ) -> None:
        """Generate and judge the images of each batch on a worker.

        `judge` are the names of the benchmark and the judge; `notify` receives messages about workers.
        """
        self.generate(opener(True), pictures)
        workers.check_output(str(self.out))
        groups = plan_groups(self.rows, self.out, pictures, self.batch)
        items = (BatchItem(opener, self.generated_by, *judge, group) for group in groups)
        records = run_items(evaluate_batch, items, workers, outputs=[str(self.out)], gpu=True, notify=notify)
        self.scored = chain.from_iterable(records)

    def use_images(self, folder: Location, notify: Callable[[str], None] = lambda line: None) -> None:
        """Use the images of a folder in GenEval's layout; `notify` receives a message about other files.

        Raises:
            LuminaError: if the folder does not have this layout.
        """
        left_out = LeftOut()
        found = list(scan_images(to_path(folder), left_out))
        if left_out:
            notify(f"{folder}: not scored: {left_out}")
        places = ((str(path.parent.parent / "metadata.jsonl"), row) for path, row in found)
        self.benchmark.check(places, self.judge)
        self.settings |= {"images": to_text(folder)}
        self.total, self.images = len(found), iter(found)

    def __iter__(self) -> Iterator[dict]:
        """Yield a row per image, then write the files.

        Raises:
            LuminaError: if another process is writing an evaluation to `out`.
        """
        if self.out is None:
            yield from self._score()
            return
        make_dir(str(self.out))
        with locked_folder(str(self.out)):
            yield from self._score()
            report.write_scores(self.out, self.scores, self.summary)
            sweep_samples(self.out)

    def _score(self) -> Iterator[dict]:
        self.scores = []
        for row in self.scored or self.benchmark.score(self.images, self.judge, self.batch):
            self.scores.append(row)
            yield row
        self.summary = self.benchmark.summarise(self.scores, self.seed) | {"settings": self.settings}

    @property
    def title(self) -> str:
        """Benchmark, judge and output folder, for the title of the table."""
        words = f"{self.benchmark.name}, {self.judge.name} judge"
        return f"{words}: rows.jsonl and summary.json in {self.out}" if self.out else words

    def table(self) -> list[dict]:
        """Return the summary as table rows."""
        return report.summary_table(self.summary)

    def check_gates(self) -> None:
        """Check all gates.

        Raises:
            GateFailed: at the first gate that is not satisfied.
        """
        for gate in self.gates:
            gate.check(self.summary)

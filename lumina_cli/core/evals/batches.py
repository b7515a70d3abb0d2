"""Batches of an evaluation on workers: each generates the missing images of a batch and judges them."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from socket import gethostname
from typing import Any, Protocol

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.geneval.layout import ImageGenerator, PlannedImage, generate_group
from lumina_cli.core.registry import BENCHMARKS, JUDGES


class GeneratorOpener(Hashable, Protocol):
    """What opens a generator of images on a worker; picklable, and equal if the generators are."""

    def __call__(self, planned: bool = False) -> ImageGenerator:
        """Return the generator; a `planned` one has its settings, but cannot generate."""


@dataclass(frozen=True)
class BatchItem:
    """Images that are generated and judged together.

    settings           of the generator where the run was started
    benchmark, judge   names in the registry
    """

    opener: GeneratorOpener
    settings: dict
    benchmark: str
    judge: str
    group: list[PlannedImage]


def evaluate_batch(item: BatchItem) -> list[dict]:
    """Return the scored rows of a batch, after generating the images that are missing.

    Raises:
        LuminaError: if the model on this machine is another one than where the run was started.
    """
    generator = _open_generator(item.opener)
    if generator.settings != item.settings:
        raise LuminaError(
            f"the model {generator.settings['model']} on {gethostname()} has other weights or settings than "
            "where the run was started"
        )
    generate_group(item.group, generator)
    benchmark, judge = _open_judge(item.benchmark, item.judge)
    images = [(path, row) for path, row, _ in item.group]
    return list(benchmark.score(images, judge, len(images)))


@lru_cache(maxsize=1)
def _open_generator(opener: GeneratorOpener) -> ImageGenerator:
    """Return the generator, opened once in each process."""
    return opener()


@lru_cache(maxsize=1)
def _open_judge(benchmark: str, judge: str) -> tuple[Any, Any]:
    """Return the benchmark and the judge, opened once in each process."""
    return BENCHMARKS.load(benchmark)(), JUDGES.load(judge)()

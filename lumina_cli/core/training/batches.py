"""Training data as the trainer requires it, and a background thread that prepares the next batch.

Stages do not import each other: the command line passes a class with this interface, such as the one in
`dataset/training_data.py`, to `train_transformer`.

B batch, M text tokens, C channels, H W latent size, T text width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lumina_cli.core.training.config import Recipe

Tokenize = Callable[[list[str]], list[list[int]]]
Encode = Callable[[Tensor], Tensor]


class TrainingBatch(Protocol):
    """One batch, on the CPU.

    latents  (B, C, H, W) float32, or a list of (C, H, W) of mixed sizes
    ids      (B, M) int64 token ids of the captions
    mask     (B, M) True for real tokens; None if all tokens are real
    text     (B, M, T) text features of the tokens if they are precomputed, else None
    """

    latents: Tensor | list[Tensor]
    ids: Tensor
    mask: Tensor | None
    text: Tensor | None


class StageBatches(Protocol):
    """The batches of one training stage.

    missing   languages and caption levels that the stage requests and the data does not contain
    """

    missing: Sequence[str]

    def batch(self, step: int) -> TrainingBatch:
        """Return the batch of a step, counted from 0; it depends on the step only, so a resume is exact."""
        ...

    def held_back(self) -> Iterable[TrainingBatch]:
        """Return the validation images in batches; they are the same on each call."""
        ...


class TrainingSource(Protocol):
    """The training data of one run."""

    def count(self) -> int | None:
        """Return the number of images, if it is known without reading them."""
        ...

    def prepare(self, encode: Encode) -> Iterator[int]:
        """Cache the latents of all images; yield the number of images done.

        `encode` maps pixels (B, 3, H, W) in [-1, 1] to latents.
        """
        ...

    def rejects(self) -> tuple[int, Path]:
        """Return the number of images that `prepare` rejected, and the file with the reasons."""
        ...

    def precomputed(self) -> dict[int, int]:
        """Return image size -> number of latents that were precomputed, without sizes that have none."""
        ...

    def stage(self, name: str, tokenizer: Tokenize) -> StageBatches:
        """Return the batches of a stage of the recipe."""
        ...


class OpenData(Protocol):
    """Opens the data of a recipe; latents and tokens are cached in `cache`.

    `frozen` is the model folder that contains the frozen components.
    """

    def __call__(self, recipe: Recipe, cache: Path, frozen: Path) -> TrainingSource: ...


def prefetch(read: Callable[[int], TrainingBatch], steps: range) -> Iterator[TrainingBatch]:
    """Yield `read(step)` for each step, in order; a background thread reads one batch ahead.

    An exception of `read` is raised for the step that it belongs to, after all earlier batches. Closing the
    generator, or an exception in the consumer that closes it, waits for the read in progress and ends the
    thread.
    """
    if not steps:
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = pool.submit(read, steps[0])
        for step in steps:
            batch = ahead.result()
            if step + 1 < steps.stop:
                ahead = pool.submit(read, step + 1)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

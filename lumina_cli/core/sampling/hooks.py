"""Batches of images, and hooks that change how a pipeline generates them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from lumina_cli.core.sampling.latents import Network
from lumina_cli.core.sampling.request import Job, ResolvedRequest

StepCallback = Callable[[int, Tensor], None]


class Components(Protocol):
    """What a hook uses of a pipeline, which imports this module.

    text, vae    the text encoder and the autoencoder
    token_side   width and height in pixels of an image token
    """

    text: Any
    vae: Any
    token_side: int


@dataclass(frozen=True)
class Batch:
    """Images of one size that are generated together.

    jobs       one for each image
    resolved   the plan and the system prompt
    size       (width, height) in pixels
    network    predicts the velocity; the pipeline's transformer unless a hook replaces it
    on_step    see `draw_latents`
    """

    jobs: Sequence[Job]
    resolved: ResolvedRequest
    size: tuple[int, int]
    network: Network
    on_step: StepCallback | None = None


class BatchHook:
    """A step before and a step after each batch of a pipeline; this one changes nothing.

    Image editing and attention maps are hooks, so the pipeline itself contains neither. Add hooks with
    `Pipeline.with_hooks`.
    """

    @property
    def edit_settings(self) -> dict | None:
        """What the metadata of an image contains as "edit"; None if the hook does not edit images."""
        return None

    def default_size(self, size: tuple[int, int], token_side: int) -> tuple[int, int]:
        """Return the size to use if a request has none, given that of the model; both (width, height)."""
        return size

    def prepare(self, pipeline: Components, batch: Batch) -> Batch:
        """Return the batch to generate instead of `batch`."""
        return batch

    def finish(self, pipeline: Components, batch: Batch, images: list[Image.Image]) -> list[Image.Image]:
        """Return the images to hand out, given those of the batch that `prepare` returned."""
        return images

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
    """The attributes of a pipeline that hooks use.

    A protocol, because `pipeline.py` imports this module.

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
    """Base class of hooks, which run code before and after each batch of a pipeline; it changes nothing.

    Image editing and attention maps are hooks. Add a hook with `Pipeline.with_hooks`.
    """

    @property
    def edit_settings(self) -> dict | None:
        """The "edit" field of an image's metadata; None if the hook does not edit images."""
        return None

    def default_size(self, size: tuple[int, int], token_side: int) -> tuple[int, int]:
        """Return the size (width, height) for requests without one; `size` is the model's default."""
        return size

    def prepare(self, pipeline: Components, batch: Batch) -> Batch:
        """Run before a batch is generated: return `batch`, or a changed copy to generate instead."""
        return batch

    def finish(self, pipeline: Components, batch: Batch, images: list[Image.Image]) -> list[Image.Image]:
        """Run after a batch was generated: return its `images`, or changed ones."""
        return images

"""Batches of the captioner, split into sub-batches whose gradients are computed in parallel."""

import copy
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lumina_cli.core.nano.scene import Scene
from lumina_cli.core.training.nano.caption_batches import CaptionWriter, mirrored
from lumina_cli.core.training.nano.caption_losses import words_loss
from lumina_cli.core.training.nano.captioner_settings import SEED, Settings
from lumina_cli.core.training.nano.detector import disturb


class SplitBatch:
    """Computes the gradients of the sub-batches of a batch in parallel, one thread per sub-batch.

    With few or busy cores this is faster than several threads within each operation. Each thread has a copy
    of the modules with the same weight tensors, but with running means of its own; those of the first copy
    are the ones that are saved.
    """

    def __init__(self, modules: nn.ModuleDict, count: int):
        self.copies = [modules]
        for _ in range(count - 1):
            twin = copy.deepcopy(modules)
            for own, shared in zip(twin.parameters(), modules.parameters(), strict=True):
                own.data = shared.data
            self.copies.append(twin)
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "SplitBatch":
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)
        self.pool.shutdown(cancel_futures=True)

    def gradients(self, sub_batches: Sequence["SubBatch"]) -> dict[str, float]:
        """Set `grad` to the mean gradient of the sub-batches, one per copy; return their mean metrics."""
        results = list(self.pool.map(self._gradients_of, self.copies, sub_batches))
        for parameter, *grads in zip(
            self.copies[0].parameters(), *(grads for grads, _ in results), strict=True
        ):
            parameter.grad = None if grads[0] is None else sum(grads) / len(grads)
        return {name: sum(row[name] for _, row in results) / len(results) for name in results[0][1]}

    @staticmethod
    def _gradients_of(
        modules: nn.ModuleDict, sub_batch: "SubBatch"
    ) -> tuple[Sequence[Tensor | None], dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            value, row = sub_batch.loss(modules)
        grads = torch.autograd.grad(value, list(modules.parameters()), allow_unused=True)
        return grads, {name: float(part.detach()) for name, part in row.items()}


@dataclass
class SubBatch:
    """A fraction of a batch: scenes and, unless the step trains on rewriting, their images and boxes.

    pixels  (B, 3, H, W) in [-1, 1]
    boxes   (B, MOST, 4) in pixels
    """

    settings: Settings
    writer: CaptionWriter
    rng: random.Random
    scenes: list[Scene]
    pixels: Tensor | None = None
    boxes: np.ndarray | None = None
    looking: bool = False

    def loss(self, modules: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics."""
        model = modules["model"]
        if self.pixels is None:
            loss = words_loss(model, self.writer.rewrite_rows(self.scenes, self.rng))
            return loss, {"rewriting": loss}
        pixels = self.pixels.contiguous(memory_format=torch.channels_last)
        seen = model.model.get_image_features(pixels, return_dict=True)
        seeing = modules["looker"].loss(seen.last_hidden_state, self.scenes, self.boxes)
        if self.looking:
            return seeing, {"loss": seeing}
        rows = self.writer.image_rows(self.scenes, self.settings.captions, self.rng)
        loss = words_loss(model, rows, seen.pooler_output)
        return loss + 0.3 * seeing, {"loss": loss, "seeing": seeing}


@dataclass
class Batches:
    """Draws the batch of a step; it depends on the step and the settings only."""

    settings: Settings
    images: np.ndarray
    boxes: np.ndarray
    scenes: list[Scene]
    writer: CaptionWriter

    def sub_batches(self, step: int) -> list[SubBatch]:
        """Return the batch of a step, split into one sub-batch per worker."""
        settings, looking = self.settings, step < self.settings.looking
        chance = np.random.default_rng((SEED, settings.seed, step))
        chosen = chance.choice(len(self.images), settings.batch, replace=False)
        parts = []
        for number, index in enumerate(np.array_split(chosen, settings.workers)):
            rng = random.Random(f"{settings.seed}/{step}/{number}")
            shown = [self.scenes[i] for i in index]
            if not looking and step % settings.rewrite_every == 0:
                parts.append(SubBatch(settings, self.writer, rng, shown))
                continue
            flipped = chance.random(len(index)) < 0.5
            pixels = torch.from_numpy(np.array(self.images[index])).permute(0, 3, 1, 2).float() / 127.5 - 1
            pixels[flipped] = pixels[flipped].flip(-1)
            shown = [mirrored(scene) if flip else scene for scene, flip in zip(shown, flipped, strict=True)]
            boxes = mirror_boxes(self.boxes[index], shown, flipped, pixels.shape[-1])
            if chance.random() < 0.3:
                pixels = disturb(pixels, chance)
            parts.append(SubBatch(settings, self.writer, rng, shown, pixels, boxes, looking))
        return parts


def mirror_boxes(boxes: np.ndarray, shown: list[Scene], flipped: np.ndarray, size: int) -> np.ndarray:
    """Return boxes (B, MOST, 4) with those of flipped images mirrored.

    `shown` are the scenes after `mirrored`, `flipped` (B,) is True for flipped images, `size` is the image
    width in pixels. The boxes are in the order of the objects of `shown`.
    """
    boxes = boxes.copy()
    boxes[flipped, :, 0::2] = size - boxes[flipped, :, 2::-2]
    for i in np.flatnonzero(flipped):
        if shown[i].layout in ("pair", "group"):  # `mirrored` reverses their objects
            count = len(shown[i].things)
            boxes[i, :count] = boxes[i, :count][::-1].copy()
    return boxes

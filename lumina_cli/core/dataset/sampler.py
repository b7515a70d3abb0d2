"""Batch planning: the images and captions of each step, a pure function of (seed, step).

The sampler keeps no other state: a resumed run needs only its step to continue with the same batches.

N images, K kinds of caption (language and level), B batch, E images per epoch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lumina_cli.core.errors import LuminaError


@dataclass(frozen=True)
class BatchPlan:
    """The plan of one step.

    rows           (B,) indices of images
    captions       (B,) the kind of caption of each image
    exact          whether all captions have the same length, so that the batch needs no mask
    unconditional  whether the batch is trained with the empty caption
    """

    rows: np.ndarray
    captions: np.ndarray
    exact: bool
    unconditional: bool = False


class Sampler:
    """Batches of consecutive epochs, in an order that depends only on the arguments.

    lengths      (N, K) tokens of each caption; 0 if an image does not have it
    weights      (K,)   sampling weights of the captions, among those that an image has
    shapes       (N,)   a number per image; images of one size have the same number
    batch        images per step
    seed         random seed
    exact        form batches of one image size and one caption length, which need no mask, for the
                 `max_lengths` most frequent combinations; the other images are in padded batches, sorted by
                 length
    max_lengths  number of combinations with exact batches
    dropout      fraction of unconditional batches among exact batches. Dropping whole batches has the same
                 expectation as dropping single captions and keeps the lengths equal; in padded batches the
                 loader drops single captions

    Raises:
        LuminaError: if no image has a caption.
    """

    def __init__(self, lengths, weights, shapes, batch, seed, *, exact=True, max_lengths=24, dropout=0.0):
        chances = np.where(lengths > 0, weights, 0.0)
        total = chances.sum(1)
        self.images = np.flatnonzero(total > 0)
        if not len(self.images):
            raise LuminaError("no image has a caption of the requested languages and levels")
        self.cumulative = np.cumsum(chances[self.images] / total[self.images, None], axis=1)
        self.lengths, self.shapes = lengths, shapes
        self.batch, self.seed, self.exact, self.dropout = batch, seed, exact, dropout
        self.size = max(len(self.images), batch)  # fewer images than a batch are repeated
        self.steps = self.size // batch  # batches per epoch
        self.frequent = self._frequent_groups(chances, max_lengths) if exact else np.empty(0, np.int64)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __getitem__(self, step: int) -> BatchPlan:
        """Return the plan of a step of the stage, counted from 0."""
        rows, captions, exact = self._epoch(step // self.steps)
        at = slice(step % self.steps * self.batch, (step % self.steps + 1) * self.batch)
        equal = bool(exact[step % self.steps])
        dropped = equal and counted_random(self.seed, 2, step).random() < self.dropout
        return BatchPlan(rows[at], captions[at], equal, dropped)

    def _groups(self, lengths: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """Return one number per combination of caption length and image size; lengths are below 100 000."""
        return lengths.astype(np.int64) + shapes.astype(np.int64) * 100_000

    def _frequent_groups(self, chances: np.ndarray, limit: int) -> np.ndarray:
        """Return the `limit` groups with the highest expected number of images per epoch."""
        groups = self._groups(self.lengths, self.shapes[:, None])
        names, where = np.unique(groups, return_inverse=True)
        expected = np.bincount(
            where.ravel(), weights=(chances / chances.sum(1, keepdims=True).clip(1e-9)).ravel()
        )
        return names[np.argsort(-expected, kind="stable")[:limit]]

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw a caption for each image and arrange the images of one epoch in batches.

        Returns image indices (E,) and caption kinds (E,), batch after batch, and whether each batch is exact.
        """
        random = counted_random(self.seed, 1, epoch)
        rows, captions = self._draw_captions(random)
        if not self.exact:
            return rows, captions, np.zeros(self.steps, bool)
        groups = self._groups(self.lengths[rows, captions], self.shapes[rows])
        batches, rest = [], [np.flatnonzero(~np.isin(groups, self.frequent))]
        for group in self.frequent:
            members = np.flatnonzero(groups == group)
            full = len(members) // self.batch * self.batch
            batches += np.split(members[:full], full // self.batch) if full else []
            rest.append(members[full:])
        # The remaining images fill the padded batches. Which of them are left out, if they do not divide
        # evenly, is random in each epoch; sorted by group, a batch pads its captions little, and most
        # batches still contain one image size.
        left = np.concatenate(rest)
        left = left[random.permutation(len(left))][: (self.steps - len(batches)) * self.batch]
        left = left[np.argsort(groups[left], kind="stable")]
        padded = np.split(left, self.steps - len(batches)) if len(left) else []
        exact = np.arange(self.steps) < len(batches)
        mixed = random.permutation(self.steps)  # otherwise an epoch would start with the frequent lengths
        chosen = np.stack(batches + padded)[mixed].ravel()
        return rows[chosen], captions[chosen], exact[mixed]

    def _draw_captions(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (E,) of an epoch in random order, and a caption kind (E,) for each."""
        repeats = -(-self.size // len(self.images))
        order = np.concatenate([random.permutation(len(self.images)) for _ in range(repeats)])[: self.size]
        # Inverse transform sampling: count the cumulative probabilities up to a uniform number.
        captions = (random.random(self.size)[:, None] >= self.cumulative[order]).sum(1)
        # The last cumulative probability may round to less than 1: never go past the last possible caption.
        captions = np.minimum(captions, (self.cumulative[order] < 1 - 1e-12).sum(1))
        return self.images[order], captions


def counted_random(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return a random generator that depends only on a seed, a stream and a number, such as a step."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, stream], counter=[0, 0, 0, number]))

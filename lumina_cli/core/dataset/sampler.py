"""Which pictures a step trains on: a pure function of (seed, step), so that resuming needs only the step.

N pictures, K captions of each, B batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lumina_cli.core.errors import LuminaError


@dataclass(frozen=True)
class Batch:
    """One step: picture numbers (B,), the caption of each (B,), and whether all captions have one length.

    `unconditional` batches are trained with the empty caption.
    """

    rows: np.ndarray
    captions: np.ndarray
    exact: bool
    unconditional: bool = False


class Sampler:
    """Batches of one epoch after another, in an order that depends on nothing but the arguments.

    lengths   (N, K) tokens of each caption; 0 where a picture has none
    weights   (K,)   how often each caption is chosen, among those that a picture has
    shapes    (N,)   a number that equals for pictures of one size
    exact     make batches of one picture size and one caption length, which need no mask, for the
              `max_lengths` most frequent combinations; the rest comes in padded batches, sorted by length
    dropout   share of unconditional batches among those of one length. Dropping whole batches has the same
              expectation as dropping single captions and keeps lengths equal; the loader drops single
              captions of padded batches
    """

    def __init__(self, lengths, weights, shapes, batch, seed, *, exact=True, max_lengths=24, dropout=0.0):
        chances = np.where(lengths > 0, weights, 0.0)
        total = chances.sum(1)
        self.pictures = np.flatnonzero(total > 0)
        if not len(self.pictures):
            raise LuminaError("no picture has a caption of the languages and levels asked for")
        self.cumulative = np.cumsum(chances[self.pictures] / total[self.pictures, None], axis=1)
        self.lengths, self.shapes = lengths, shapes
        self.batch, self.seed, self.exact, self.dropout = batch, seed, exact, dropout
        self.size = max(len(self.pictures), batch)
        self.steps = self.size // batch  # batches an epoch
        self.frequent = self._frequent_groups(chances, max_lengths) if exact else np.empty(0, np.int64)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __getitem__(self, step: int) -> Batch:
        """Return batch `step` of the stage, counted from 0."""
        rows, captions, exact = self._epoch(step // self.steps)
        at = slice(step % self.steps * self.batch, (step % self.steps + 1) * self.batch)
        equal = bool(exact[step % self.steps])
        dropped = equal and counted_random(self.seed, 2, step).random() < self.dropout
        return Batch(rows[at], captions[at], equal, dropped)

    def _groups(self, lengths: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        return lengths.astype(np.int64) + shapes.astype(np.int64) * 100_000

    def _frequent_groups(self, chances: np.ndarray, limit: int) -> np.ndarray:
        """The groups of (picture size, caption length) expected most often."""
        groups = self._groups(self.lengths, self.shapes[:, None])
        names, where = np.unique(groups, return_inverse=True)
        expected = np.bincount(
            where.ravel(), weights=(chances / chances.sum(1, keepdims=True).clip(1e-9)).ravel()
        )
        return names[np.argsort(-expected, kind="stable")[:limit]]

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose a caption for each picture, and put the pictures of one epoch in batches."""
        random = counted_random(self.seed, 1, epoch)
        order = np.concatenate(
            [random.permutation(len(self.pictures)) for _ in range(-(-self.size // len(self.pictures)))]
        )
        order = order[: self.size]
        captions = (random.random(self.size)[:, None] >= self.cumulative[order]).sum(1)
        captions = np.minimum(captions, (self.cumulative[order] < 1 - 1e-12).sum(1))
        rows = self.pictures[order]
        if not self.exact:
            return rows, captions, np.zeros(self.steps, bool)
        groups = self._groups(self.lengths[rows, captions], self.shapes[rows])
        batches, rest = [], [np.flatnonzero(~np.isin(groups, self.frequent))]
        for group in self.frequent:
            members = np.flatnonzero(groups == group)
            full = len(members) // self.batch * self.batch
            batches += np.split(members[:full], full // self.batch) if full else []
            rest.append(members[full:])
        left = np.concatenate(rest)
        left = left[random.permutation(len(left))][: (self.steps - len(batches)) * self.batch]
        left = left[np.argsort(groups[left], kind="stable")]
        padded = np.split(left, self.steps - len(batches)) if len(left) else []
        exact = np.arange(self.steps) < len(batches)
        mixed = random.permutation(self.steps)
        chosen = np.stack(batches + padded)[mixed].ravel()
        return rows[chosen], captions[chosen], exact[mixed]


def counted_random(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return a generator that depends on nothing but three numbers."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, stream], counter=[0, 0, 0, number]))

"""Training data: from a source to batches of latents and caption tokens.

`training/batches.py` declares the interface that the trainer requires.

N images, K kinds of caption (language and level), B batch, M text tokens, C channels, H W latent size, T text
width.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.dataset.caption_tokens import CaptionTokens
from lumina_cli.core.dataset.latent_cache import (
    Encode,
    build_stores,
    count_precomputed,
    count_rejects,
)
from lumina_cli.core.dataset.latent_store import LatentStore
from lumina_cli.core.dataset.precomputed import PrecomputedFeatures, PrecomputedLatents
from lumina_cli.core.dataset.sampler import BatchPlan, Sampler, counted_random
from lumina_cli.core.dataset.source_fingerprint import fingerprint
from lumina_cli.core.device import cpu_count
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.captions import get_base_level
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.sources.count import count_source
from lumina_cli.core.sources.settings import split_place
from lumina_cli.core.sources.source import read_source

DROP, HOLD_BACK, CHOOSE = 3, 4, 5  # random streams; the sampler uses 1 and 2


@dataclass(frozen=True)
class TrainBatch:
    """One training batch, on the CPU.

    latents  (B, C, H, W) float32, or a list of (C, H, W) of mixed sizes
    ids      (B, M) int64 token ids
    mask     (B, M) True for real tokens; None if all tokens are real
    text     (B, M, T) float32 text features if they are precomputed, else None
    """

    latents: Tensor | list[Tensor]
    ids: Tensor
    mask: Tensor | None
    text: Tensor | None = None


class TrainingData:
    """The data of a run: `prepare` caches latents, `stage` returns the batches of one stage.

    recipe  settings of `lumina train` for a transformer
    cache   folder for latents and tokens, in subfolders per source, autoencoder and size
    frozen  model folder with the frozen components
    notify  receives a message about files of the source that are not read, and about damaged caches
    """

    def __init__(self, recipe, cache: Path, frozen: Path, notify: Callable[[str], None] = lambda line: None):
        self.recipe, self.frozen, self.notify = recipe, frozen, notify
        sizes = sorted({stage.size for stage in recipe.stages.values()})
        keys = (fingerprint(name, frozen / "vae", recipe.data) for name in _names_of(recipe.data))
        found = ({size: cache / f"{key}-{size}" for size in sizes} for key in keys)
        self.folders = next(found)
        if not any(folder.exists() for folder in self.folders.values()):
            earlier = next(found, {})  # of a release that saved relative paths
            self.folders = earlier if any(folder.exists() for folder in earlier.values()) else self.folders

    def count(self) -> int | None:
        """Return the number of rows of the data, if it is known without reading all of it."""
        return count_source(self.recipe.data)

    def prepare(self, encode: Encode) -> Iterator[int]:
        """Encode images that are not cached yet, at all sizes of the recipe; yield the number of rows done.

        Latents that `lumina shard encode` has precomputed are copied instead.

        Raises:
            LuminaError, TooManyRejects: see `build_stores`.
        """
        rows = read_source(self.recipe.data, workers=cpu_count(), notify=self.notify)
        find = PrecomputedLatents(self.frozen, list(self.folders))
        return build_stores(rows, self.folders, encode, self.recipe.max_bad_rate, find, note=self.notify)

    def rejects(self) -> tuple[int, Path]:
        """Return the number of images that `prepare` rejected, and the file with the reasons."""
        folder = next(iter(self.folders.values()))
        return count_rejects(folder), folder / "rejects.jsonl"

    def precomputed(self) -> dict[int, int]:
        """Return size in pixels -> number of precomputed latents, without sizes that have none."""
        counts = {size: count_precomputed(folder) for size, folder in self.folders.items()}
        return {size: count for size, count in counts.items() if count}

    def stage(self, name: str, tokenizer) -> "StageData":
        """Return the batches of a stage; `tokenizer` maps a list of texts to lists of token ids.

        Raises:
            LuminaError: if no caption has the languages and levels of the stage, or if the stage selects the
                best images and no row has a score.
        """
        store = LatentStore(self.folders[self.recipe.stages[name].size])
        stage = StageData(store, self.recipe, name, tokenizer, self.frozen)
        for line in store.notes:
            self.notify(line)
        return stage


class StageData:
    """Batches of one stage; each is a pure function of its step.

    kinds      K pairs (language, level) to train on
    missing    languages and levels that the stage requests and the data does not contain
    features   precomputed text features, if any
    null       (M,) token ids of the empty caption
    """

    def __init__(self, store: LatentStore, recipe, name: str, tokenizer, frozen: Path | None = None):
        self.store, self.recipe, self.settings = store, recipe, recipe.stages[name]
        self.seed = recipe.seed * 16 + list(recipe.stages).index(name)
        kinds, weights = caption_kinds(store.captions, self.settings)
        self.kinds = kinds
        self.features = PrecomputedFeatures(frozen, self.settings.system) if frozen else None
        self.missing = missing_captions(kinds, self.settings)
        self.null = np.array(tokenizer([""])[0], np.int32)
        self.tokens = CaptionTokens(store, kinds, self.settings.system, tokenizer)
        # An image without captions is never sampled: this excludes images that are held back or not the best.
        lengths = np.where(self._trained()[:, None], self.tokens.lengths, 0)
        _, shapes = np.unique(store.shapes, axis=0, return_inverse=True)
        self.sampler = Sampler(
            lengths,
            np.array(weights),
            shapes.ravel(),
            self.settings.batch,
            self.seed,
            exact=recipe.exact_lengths,
            max_lengths=recipe.max_lengths,
            dropout=recipe.caption_dropout,
        )

    def batch(self, step: int) -> TrainBatch:
        """Return the batch of a step of this stage, counted from 0."""
        chosen = self.sampler[step]
        latents = self.store.read(chosen.rows)
        if chosen.unconditional:
            return TrainBatch(latents, torch.from_numpy(self.null).long().expand(len(chosen.rows), -1), None)
        texts = [self.tokens.read(row, kind) for row, kind in zip(chosen.rows, chosen.captions, strict=True)]
        if chosen.exact:
            ids = torch.from_numpy(np.stack(texts)).long()
            return TrainBatch(latents, ids, None, self._features(chosen, ids))
        dropped = counted_random(self.seed, DROP, step).random(len(texts)) < self.recipe.caption_dropout
        ids, mask = pad([self.null if drop else text for drop, text in zip(dropped, texts, strict=True)])
        return TrainBatch(latents, ids, mask, None if dropped.any() else self._features(chosen, ids, mask))

    def _features(self, chosen: BatchPlan, ids: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return the precomputed features (B, M, T) of these captions, or None if one of them has none."""
        found = []
        for i, (row, kind) in enumerate(zip(chosen.rows, chosen.captions, strict=True)):
            lang, level = self.kinds[kind]
            known = self.features and self.features.read(
                self.store.images[row], self.store.captions[row][lang][level]
            )
            if known is None or len(known) != (ids.shape[1] if mask is None else int(mask[i].sum())):
                return None
            found.append(np.pad(known, ((0, ids.shape[1] - len(known)), (0, 0))))
        return torch.from_numpy(np.stack(found)).float()

    def held_back(self, size: int = 64) -> Iterator[TrainBatch]:
        """Yield the validation images, each with one fixed caption, in padded batches of `size`."""
        rows = [row for row in self._validation_rows() if self.tokens.lengths[row].any()]
        random = counted_random(0, CHOOSE, 0)
        kinds = [random.choice(np.flatnonzero(self.tokens.lengths[row])) for row in rows]
        for pairs in chunked(zip(rows, kinds, strict=True), size):
            ids, mask = pad([self.tokens.read(row, kind) for row, kind in pairs])
            yield TrainBatch(self.store.read(np.array([row for row, _ in pairs])), ids, mask)

    def _validation_rows(self) -> np.ndarray:
        """Return the validation images, the same in each stage, at most a tenth of all images."""
        count = min(self.recipe.validation.samples, len(self.store) // 10)
        return counted_random(0, HOLD_BACK, 0).permutation(len(self.store))[:count]

    def _trained(self) -> np.ndarray:
        """Return (N,) True for the images that this stage trains on."""
        trained = np.ones(len(self.store), bool)
        fraction = self.settings.keep_best
        if fraction < 1:
            if np.isnan(self.store.scores).all():
                raise LuminaError(
                    f"keep_best={fraction:g} needs a 'score' in the rows of the data, and no row has one"
                )
            trained = self.store.scores >= np.nanquantile(self.store.scores, 1 - fraction)
        trained[self._validation_rows()] = False
        return trained


def _names_of(source: str) -> list[str]:
    """Return a source and, if it is a path, its path relative to the working folder.

    Earlier releases named the caches of a recipe with a relative path after that path.
    """
    place = split_place(source)[0]
    if not os.path.isabs(place) or not os.path.exists(place):
        return [source]
    return [source, os.path.relpath(place) + source[len(place) :]]


def caption_kinds(captions: list[dict], settings) -> tuple[list[tuple[str, str]], list[float]]:
    """Return the (language, level) pairs that a stage trains on and the data contains, and their weights.

    Raises:
        LuminaError: if there are none.
    """
    found = sorted({(lang, level) for row in captions for lang, levels in row.items() for level in levels})
    langs = settings.langs or dict.fromkeys((lang for lang, _ in found), 1.0)
    levels = settings.captions or dict.fromkeys((level for _, level in found), 1.0)
    weights = {
        (lang, level): langs.get(lang, 0) * levels.get(level, levels.get(get_base_level(level), 0))
        for lang, level in found
    }
    kinds = [kind for kind in found if weights[kind] > 0]
    if not kinds:
        have = ", ".join(f"{lang}.{level}" for lang, level in found)
        raise LuminaError(
            f"no caption in {', '.join(langs)} at level {', '.join(levels)}; the data has {have}"
        )
    return kinds, [weights[kind] for kind in kinds]


def missing_captions(kinds: list[tuple[str, str]], settings) -> list[str]:
    """Return the languages and levels that a stage requests and no caption of the data has."""
    requested = [*(settings.langs or {}).items(), *(settings.captions or {}).items()]
    present = {name for kind in kinds for name in kind}
    return [name for name, weight in requested if weight > 0 and name not in present]


def pad(texts: list[np.ndarray], multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Return token ids (B, M), padded on the right to a multiple of `multiple`, and the mask (B, M)."""
    longest = -(-max(map(len, texts)) // multiple) * multiple
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, True
    return torch.from_numpy(ids), torch.from_numpy(mask)

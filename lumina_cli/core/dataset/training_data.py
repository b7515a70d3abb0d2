"""From a source to batches of latents and caption tokens: what one training step sees.

N pictures, K kinds of caption (language and level), B batch, M text tokens.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.dataset.latent_cache import (
    Encode,
    LatentStore,
    build_stores,
    count_precomputed,
    count_rejects,
    fingerprint,
)
from lumina_cli.core.dataset.precomputed import PrecomputedFeatures, PrecomputedLatents
from lumina_cli.core.dataset.sampler import Batch, Sampler, counted_random
from lumina_cli.core.device import cpu_count
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.sources.source import read_source

MAX_TOKENS = 256
DROP, HOLD_BACK, CHOOSE = 3, 4, 5  # random streams, after the sampler's


@dataclass(frozen=True)
class TrainBatch:
    """latents (B, C, H, W) or a list; token ids (B, M); mask (B, M) or None where every token is real.

    text (B, M, T) are the features of the tokens where they are known already, else None.
    """

    latents: Tensor | list[Tensor]
    ids: Tensor
    mask: Tensor | None
    text: Tensor | None = None


class TrainingData:
    """The data of a run: `prepare` caches latents, `stage` gives the batches of one stage.

    `recipe` is the settings of a transformer's training, as `lumina train` reads them.
    """

    def __init__(self, recipe, cache: Path, frozen: Path):
        self.recipe, self.frozen = recipe, frozen
        key = fingerprint(recipe.data, frozen / "vae")
        sizes = sorted({stage.size for stage in recipe.stages.values()})
        self.folders = {size: cache / f"{key}-{size}" for size in sizes}

    def prepare(self, encode: Encode) -> Iterator[int]:
        """Encode what is not cached yet, at all sizes of the recipe; yields the number of pictures done.

        Latents that `lumina shard encode` left beside shards are taken from there.
        """
        rows = read_source(self.recipe.data, workers=cpu_count())
        find = PrecomputedLatents(self.frozen, list(self.folders))
        return build_stores(rows, self.folders, encode, self.recipe.max_bad_rate, find)

    def rejects(self) -> tuple[int, Path]:
        """Return how many pictures were left out by `prepare`, and the file that says why."""
        folder = next(iter(self.folders.values()))
        return count_rejects(folder), folder / "rejects.jsonl"

    def ready(self) -> dict[int, int]:
        """Return how many latents `prepare` found beside shards, by size, where it found any."""
        counts = {size: count_precomputed(folder) for size, folder in self.folders.items()}
        return {size: count for size, count in counts.items() if count}

    def stage(self, name: str, tokenizer) -> "StageData":
        """Return the batches of a stage; `tokenizer` maps a list of texts to lists of token ids."""
        return StageData(
            LatentStore(self.folders[self.recipe.stages[name].size]),
            self.recipe,
            name,
            tokenizer,
            self.frozen,
        )


class StageData:
    """Batches of one stage, each a pure function of its step."""

    def __init__(self, store: LatentStore, recipe, name: str, tokenizer, frozen: Path | None = None):
        self.store, self.recipe, self.settings = store, recipe, recipe.stages[name]
        self.seed = recipe.seed * 16 + list(recipe.stages).index(name)
        kinds, weights = caption_kinds(store.captions, self.settings)
        self.kinds, self.ready = kinds, PrecomputedFeatures(frozen, self.settings.system) if frozen else None
        self.missing = missing_captions(kinds, self.settings)
        self.null = np.array(tokenizer([""])[0], np.int32)
        self.tokens = CaptionTokens(store, kinds, self.settings.system, tokenizer)
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

    def _features(self, chosen: Batch, ids: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """The features (B, M, T) that `lumina shard encode` left for these captions; None if one has none."""
        found = []
        for i, (row, kind) in enumerate(zip(chosen.rows, chosen.captions, strict=True)):
            lang, level = self.kinds[kind]
            known = self.ready and self.ready.read(
                self.store.images[row], self.store.captions[row][lang][level]
            )
            if known is None or len(known) != (ids.shape[1] if mask is None else int(mask[i].sum())):
                return None
            found.append(np.pad(known, ((0, ids.shape[1] - len(known)), (0, 0))))
        return torch.from_numpy(np.stack(found)).float()

    def held_back(self, size: int = 64) -> Iterator[TrainBatch]:
        """Yield the pictures that are never trained on, each with one fixed caption, in padded batches."""
        rows = [row for row in self._validation_rows() if self.tokens.lengths[row].any()]
        random = counted_random(0, CHOOSE, 0)
        kinds = [random.choice(np.flatnonzero(self.tokens.lengths[row])) for row in rows]
        for pairs in chunked(zip(rows, kinds, strict=True), size):
            ids, mask = pad([self.tokens.read(row, kind) for row, kind in pairs])
            yield TrainBatch(self.store.read(np.array([row for row, _ in pairs])), ids, mask)

    def _validation_rows(self) -> np.ndarray:
        """The same pictures at every stage: the recipe's number of samples, but at most a tenth of all."""
        count = min(self.recipe.validation.samples, len(self.store) // 10)
        return counted_random(0, HOLD_BACK, 0).permutation(len(self.store))[:count]

    def _trained(self) -> np.ndarray:
        """(N,) True for the pictures that this stage may train on."""
        trained = np.ones(len(self.store), bool)
        share = self.settings.keep_best
        if share < 1:
            if np.isnan(self.store.scores).all():
                raise LuminaError(
                    f"keep_best={share:g} needs a 'score' in the rows of the data, and none has one"
                )
            trained = self.store.scores >= np.nanquantile(self.store.scores, 1 - share)
        trained[self._validation_rows()] = False
        return trained


class CaptionTokens:
    """The tokens of every caption of the wanted kinds, cached beside the latents.

    lengths (N, K) tokens of each caption, 0 where a picture has none.
    """

    def __init__(self, store: LatentStore, kinds: list[tuple[str, str]], system: str, tokenizer):
        sample = full_prompt("a sample of 10 words, 一个样本, ein Muster", system)
        name = repr((kinds, full_prompt("", system), tokenizer([sample]), len(store)))
        path = store.folder / f"tokens-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            lengths, values = tokenize(store.captions, kinds, system, tokenizer)
            with atomic_write(path) as aside:
                np.savez(aside, lengths=lengths, values=values)
        with np.load(path) as arrays:
            self.lengths, self.values = arrays["lengths"], arrays["values"]
        self.ends = self.lengths.ravel().astype(np.int64).cumsum().reshape(self.lengths.shape)

    def read(self, row: int, kind: int) -> np.ndarray:
        """Return the token ids (M,) of one caption."""
        return self.values[self.ends[row, kind] - self.lengths[row, kind] : self.ends[row, kind]]


def tokenize(
    captions: list[dict], kinds: list[tuple[str, str]], system: str, tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths (N, K) and all token ids after one another, each caption after its system prompt."""
    texts = ((row.get(lang) or {}).get(level) for row in captions for lang, level in kinds)
    lengths, values = [], []
    for chunk in chunked(texts, 8192):
        ids = iter(tokenizer([full_prompt(text, system) for text in chunk if text is not None]))
        for text in chunk:
            found = next(ids)[:MAX_TOKENS] if text is not None else []
            lengths.append(len(found))
            values.append(np.array(found, np.int32))
    return np.array(lengths, np.int32).reshape(len(captions), len(kinds)), np.concatenate(values)


def caption_kinds(captions: list[dict], settings) -> tuple[list[tuple[str, str]], list[float]]:
    """Return the (language, level) pairs that a stage trains on and that occur, with their weights."""
    found = sorted({(lang, level) for row in captions for lang, levels in row.items() for level in levels})
    langs = settings.langs or dict.fromkeys((lang for lang, _ in found), 1.0)
    levels = settings.captions or dict.fromkeys((level for _, level in found), 1.0)
    kinds = [(lang, level) for lang, level in found if langs.get(lang, 0) * levels.get(level, 0) > 0]
    if not kinds:
        have = ", ".join(f"{lang}.{level}" for lang, level in found)
        raise LuminaError(f"no caption of {', '.join(langs)} at {', '.join(levels)}; the data has {have}")
    return kinds, [langs[lang] * levels[level] for lang, level in kinds]


def missing_captions(kinds: list[tuple[str, str]], settings) -> list[str]:
    """Return the languages and levels that a stage asks for and that no caption of the data has."""
    asked = [*(settings.langs or {}).items(), *(settings.captions or {}).items()]
    there = {name for kind in kinds for name in kind}
    return [name for name, weight in asked if weight > 0 and name not in there]


def pad(texts: list[np.ndarray], multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Return token ids (B, M), padded on the right to a multiple of 8, and the mask (B, M) of real tokens."""
    longest = -(-max(map(len, texts)) // multiple) * multiple
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, True
    return torch.from_numpy(ids), torch.from_numpy(mask)

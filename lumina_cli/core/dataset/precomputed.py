"""Precomputed latents and text features: the training side of `lumina shard encode`."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from lumina_cli.core.dataset.latent_cache import LatentsBySize
from lumina_cli.core.dataset.precompute import text_digest, text_overlay, vae_digest
from lumina_cli.core.dataset.shard_encoders import LATENTS, TEXT, decode_npy, digest_of
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.reader import Overlay, newest_version
from lumina_cli.core.shards.tar import TarImage, read_index, read_span


class PrecomputedLatents:
    """Returns the precomputed latents of a row by size, if the autoencoder of `model` encoded them.

    model  model folder whose autoencoder must have encoded the latents
    sizes  sizes in pixels to search for

    The result is empty for rows that are not from shards, and for shards that were not encoded, or were
    encoded by another autoencoder. Lines of an index are found by image, so latents of a replaced image are
    never returned.
    """

    def __init__(self, model: Path, sizes: list[int]):
        self.digest, self.sizes = vae_digest(model), sizes
        self.overlays = lru_cache(self._overlays)
        self.lines = lru_cache(2)(self._lines)

    def __call__(self, row: dict) -> LatentsBySize:
        """Return size in pixels -> float32 latents (C, H, W) of a row."""
        image = row.get("image")
        if not isinstance(image, TarImage):
            return {}
        found = {}
        for size, overlay, lines in self.lines(image.tar):
            line = lines.get(image.member)
            if line and LATENTS in line["members"]:  # absent if the image could not be read
                values = decode_npy(overlay.read(image.tar, line, LATENTS))
                found[size] = torch.from_numpy(values.astype("float32"))
        return found

    def _overlays(self, folder: str) -> list[tuple[int, Overlay]]:
        newest = ((size, newest_version(folder, f"latents-{size}")) for size in self.sizes)
        return [(size, one) for size, one in newest if one and _encoder(one) == self.digest]

    def _lines(self, tar: str) -> list[tuple[int, Overlay, dict]]:
        """Return size, overlay, and the lines of its index by image member, for each overlay of a tar."""
        overlays = self.overlays(filesystem.parent(tar))
        entries = read_index(tar) if overlays else []
        members = {entry["key"]: entry["image"] for entry in entries}
        return [
            (size, one, {members[key]: line for key, line in one.open(tar, entries).items()})
            for size, one in overlays
        ]


class PrecomputedFeatures:
    """Returns precomputed text features of captions, by the text encoder of `model` and a system prompt."""

    def __init__(self, model: Path, system: str):
        self.model, self.system = model, system
        self.overlay = lru_cache(self._overlay)
        self.lines = lru_cache(256)(self._lines)

    def read(self, image: str | None, text: str) -> np.ndarray | None:
        """Return features float16 (M, T) of a caption of the sample with image "TAR#MEMBER", or None."""
        tar, sign, member = (image or "").rpartition("#")
        overlay = self.overlay(filesystem.parent(tar)) if sign else None
        line = self.lines(tar).get(member) if overlay else None
        if line is None:
            return None
        requested, before = digest_of(text), 0
        for _, _, digest, tokens in line["captions"]:
            if digest == requested:
                return _rows(filesystem.join(overlay.folder, filesystem.basename(tar)), line, before, tokens)
            before += tokens
        return None

    def _overlay(self, folder: str) -> Overlay | None:
        newest = newest_version(folder, text_overlay(self.system))
        known = newest is not None and _encoder(newest) == text_digest(self.model)
        return newest if known else None

    def _lines(self, tar: str) -> dict[str, dict]:
        """Return the lines of the index of the overlay of a tar, by image member."""
        entries = read_index(tar)
        found = self.overlay(filesystem.parent(tar)).open(tar, entries)
        return {entry["image"]: found[entry["key"]] for entry in entries if entry["key"] in found}


def _encoder(overlay: Overlay) -> str | None:
    """Return the digest of the encoder of an overlay, or None if an encoder did not write it."""
    settings = overlay.info.get("settings")
    return settings.get("encoder") if isinstance(settings, dict) else None


def _rows(tar: str, line: dict, first: int, count: int) -> np.ndarray:
    """Read `count` rows of the array of a sample from row `first`, not the rows of its other captions."""
    offset, length = line["members"][TEXT]
    width = line["width"]
    head = length - 2 * width * sum(tokens for *_, tokens in line["captions"])  # of the .npy header
    data = read_span(tar, offset + head + 2 * width * first, 2 * width * count, f"{line['key']}.{TEXT}")
    return np.frombuffer(data, np.float16).reshape(count, width)

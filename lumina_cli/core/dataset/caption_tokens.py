"""Tokens of the captions that a stage trains on, cached next to the latents.

N images, K kinds of caption (language and level), M tokens.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lumina_cli.core.dataset.latent_store import LatentStore
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.jsonl import chunked

MAX_TOKENS = 256


class CaptionTokens:
    """The tokens of all captions of the kinds that a stage trains on, cached next to the latents.

    lengths  (N, K) tokens of each caption, 0 if an image does not have it
    """

    def __init__(self, store: LatentStore, kinds: list[tuple[str, str]], system: str, tokenizer):
        # The tokens of a sample text identify the tokenizer in the name of the cache.
        sample = full_prompt("a sample of 10 words, 一个样本, ein Muster", system)
        name = repr((kinds, full_prompt("", system), tokenizer([sample]), len(store)))
        path = store.folder / f"tokens-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
        found = _read_tokens(path, (len(store), len(kinds)))
        if found is None:
            if path.exists():
                store.notes.append(f"token cache {path} is damaged: building it again")
            found = tokenize(store.captions, kinds, system, tokenizer)
            with atomic_write(path) as aside:
                np.savez(aside, lengths=found[0], values=found[1])
        self.lengths, self.values = found
        self.ends = self.lengths.ravel().astype(np.int64).cumsum().reshape(self.lengths.shape)

    def read(self, row: int, kind: int) -> np.ndarray:
        """Return the token ids (M,) of one caption."""
        return self.values[self.ends[row, kind] - self.lengths[row, kind] : self.ends[row, kind]]


def _read_tokens(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the lengths and token ids in a cache file; None if it does not exist or is damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # verifies the checksums of the zip archive
            lengths, values = arrays["lengths"], arrays["values"]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None
    whole = lengths.shape == shape and lengths.min(initial=0) >= 0 and lengths.sum() == len(values)
    return (lengths, values) if whole else None


def tokenize(
    captions: list[dict], kinds: list[tuple[str, str]], system: str, tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths (N, K) of captions and their token ids, concatenated.

    Each caption follows its system prompt and is truncated to MAX_TOKENS.
    """
    texts = ((row.get(lang) or {}).get(level) for row in captions for lang, level in kinds)
    lengths, values = [], []
    for chunk in chunked(texts, 8192):
        ids = iter(tokenizer([full_prompt(text, system) for text in chunk if text is not None]))
        for text in chunk:
            found = next(ids)[:MAX_TOKENS] if text is not None else []
            lengths.append(len(found))
            values.append(np.array(found, np.int32))
    return np.array(lengths, np.int32).reshape(len(captions), len(kinds)), np.concatenate(values)

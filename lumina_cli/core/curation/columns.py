"""The columns of samples that a selection keeps in memory: few bytes each, for a hundred million samples.

One byte per sample, and per sample that meets the conditions: its score (8 bytes); for exact duplicates, half
of its sha256 (16); for near duplicates, its perceptual hash, whether it has one, and its number of pixels
(13); for --per-source, the number of its source (4).

N samples; S of them remain so far.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lumina_cli.core.curation.dedup import digest_groups, digests_of, hashes_of, near_groups
from lumina_cli.core.curation.filter_expr import column

SCORE = "score"
MAX_PIXELS = np.iinfo(np.int32).max  # larger images count as equally large


@dataclass
class SelectionColumns:
    """The samples that remain, and their columns.

    mask     (N,) True for the S samples that remain
    columns  name -> array (S, ...)
    """

    mask: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of samples that remain."""
        return int(np.count_nonzero(self.mask))

    @property
    def scores(self) -> np.ndarray:
        """The scores (S,), higher is better; nan if a sample has none."""
        return self.columns[SCORE]

    def take(self, name: str) -> np.ndarray:
        """Remove and return a column, so that its memory can be freed after its last use."""
        return self.columns.pop(name)

    def narrow(self, kept: np.ndarray) -> None:
        """Keep those of the S samples that are True in `kept` (S,)."""
        self.mask[self.mask] = kept
        for name in self.columns:
            self.columns[name] = self.columns[name][kept]

    def groups(self, copies: str, distance: int) -> np.ndarray:
        """Return the number of each sample's group of duplicates (S,); removes the columns used.

        `copies` is "exact" or "near", `distance` the maximum number of different bits of near duplicates.
        Samples without a perceptual hash are compared by their bytes.
        """
        digests = self.take("digest")
        if copies == "exact":
            return digest_groups(digests)
        known, hashes = self.take("known"), self.take("phash")
        groups = np.zeros(len(known), np.int64)
        groups[known] = near_groups(hashes, distance)
        if not known.all():
            groups[~known] = groups.max(initial=0) + 1 + digest_groups(digests)
        return groups


class ColumnBuilder:
    """Collects columns from the parts of a table.

    by       the column of the score, None for none
    copies   None, "exact" or "near": which columns are needed to find duplicates
    sources  whether the source of each sample is needed

    The data is collected in bytearrays: they grow in place, while appending to an array copies it.
    """

    def __init__(self, by: str | None, copies: str | None, sources: bool):
        self.by, self.copies = by, copies
        self.mask, self.sources = bytearray(), {}
        types = {SCORE: np.float64}
        types |= {"digest": np.uint64} if copies else {}
        near = {"phash": np.uint64, "known": np.bool_, "pixels": np.int32}
        types |= near if copies == "near" else {}
        types |= {"source": np.int32} if sources else {}
        self.types, self.data = types, {name: bytearray() for name in types}
        self.without_digest = 0

    def add(self, part: Any, kept: np.ndarray) -> None:
        """Add the samples of a table (N rows) that are True in `kept` (N,)."""
        import pyarrow as pa

        self.mask += kept.tobytes()
        part = part if kept.all() else part.filter(pa.array(kept))
        self.data[SCORE] += numbers(part, self.by).tobytes()
        if "source" in self.data:
            codes = part["source"].combine_chunks().fill_null("").dictionary_encode()
            found = [
                self.sources.setdefault(each, len(self.sources)) for each in codes.dictionary.to_pylist()
            ]
            self.data["source"] += np.array(found, np.int32)[codes.indices.to_numpy()].tobytes()
        if self.copies == "near":
            pixels = np.nan_to_num(numbers(part, "pixels"))  # 0 if the size is unknown
            self.data["pixels"] += np.minimum(pixels, MAX_PIXELS).astype(np.int32).tobytes()
            known = as_array(part["phash"].is_valid())
            self.data["known"] += known.tobytes()
            self.data["phash"] += hashes_of(part["phash"].drop_null()).tobytes()
            part = part.filter(pa.array(~known))  # samples with a perceptual hash need no digest
        if self.copies:
            self.data["digest"] += self._digests(part["sha256"]).tobytes()

    def _digests(self, texts: Any) -> np.ndarray:
        """Return digests (N, 2) of the images; each one without a sha256 gets a unique digest."""
        known = as_array(texts.is_valid())
        digests = np.zeros(
            (len(texts), 2), np.uint64
        )  # a sha256 that begins with 64 zero bits does not occur
        digests[known] = digests_of(texts.drop_null())
        count = len(known) - int(np.count_nonzero(known))
        digests[~known, 1] = np.arange(self.without_digest, self.without_digest + count)
        self.without_digest += count
        return digests

    def build(self) -> SelectionColumns:
        """Return the collected columns."""
        columns = {name: np.frombuffer(data, self.types[name]) for name, data in self.data.items()}
        if "digest" in columns:
            columns["digest"] = columns["digest"].reshape(-1, 2)
        return SelectionColumns(np.frombuffer(self.mask, np.bool_), columns)


def numbers(part: Any, by: str | None) -> np.ndarray:
    """Return the values (N,) of a numeric column as float64, nan for null; all nan if `by` is None."""
    if by is None:
        return np.full(len(part), np.nan)
    return as_array(column(part, by).cast("double")).astype(np.float64)


def as_array(values: Any) -> np.ndarray:
    """Return a pyarrow column as a numpy array."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return (N,) True for the `count` highest scores (N,); the first of equal ones; nan is the lowest."""
    if count >= len(scores):
        return np.ones(len(scores), bool)
    if count < 1:
        return np.zeros(len(scores), bool)
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    lowest = np.partition(ranked, -count)[-count]  # linear time, unlike a sort of a hundred million
    kept = ranked > lowest
    ties = np.flatnonzero(ranked == lowest)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def best_of_each(scores: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Return (N,) True for the `count` highest scores of each code; `codes` (N,) are integers."""
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1, append=-1))
    kept = np.zeros(len(codes), bool)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        members = order[start:stop]
        kept[members] = best_of(scores[members], count)
    return kept

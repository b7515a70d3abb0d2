"""What a selection holds of samples while it is made: little of each, because there may be a hundred million.

A byte a sample and, of each that meets the conditions, its score (8 bytes), for exact copies half of its
sha256 (16), for near ones its perceptual hash and its pixels (13), and for --per-source a number (4). S
samples are chosen so far.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lumina_cli.core.curation.dedup import digest_groups, digests_of, hashes_of, near_groups
from lumina_cli.core.curation.filter_expr import column

SCORE = "score"
MOST_PIXELS = np.iinfo(np.int32).max  # that are told from fewer


@dataclass
class SelectionColumns:
    """What is held of samples.

    mask     (all,)  True for those that are chosen so far, S of them
    columns          arrays (S, ...) by name
    """

    mask: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.mask))

    @property
    def scores(self) -> np.ndarray:
        """(S,) what is best; nan where there is none."""
        return self.columns[SCORE]

    def take(self, name: str) -> np.ndarray:
        """Return a column that is not needed again."""
        return self.columns.pop(name)

    def narrow(self, kept: np.ndarray) -> None:
        """Go on with those of the S samples that are True in `kept`."""
        self.mask[self.mask] = kept
        for name in self.columns:
            self.columns[name] = self.columns[name][kept]

    def groups(self, copies: str, distance: int) -> np.ndarray:
        """Return (S,) group numbers of copies; those without a perceptual hash are told by their bytes."""
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
    """Collects what is held of the parts of a table; bytearrays grow in place, where arrays are copied."""

    def __init__(self, by: str | None, copies: str | None, sources: bool):
        self.by, self.copies = by, copies
        self.mask, self.sources = bytearray(), {}
        types = {SCORE: np.float64}
        types |= {"digest": np.uint64} if copies else {}
        near = {"phash": np.uint64, "known": np.bool_, "pixels": np.int32}
        types |= near if copies == "near" else {}
        types |= {"source": np.int32} if sources else {}
        self.types, self.data, self.alone = types, {name: bytearray() for name in types}, 0

    def add(self, part: Any, kept: np.ndarray) -> None:
        """Take what is needed of those samples of a table that are True in `kept`."""
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
            pixels = np.nan_to_num(numbers(part, "pixels"))  # 0 where the size is not known
            self.data["pixels"] += np.minimum(pixels, MOST_PIXELS).astype(np.int32).tobytes()
            known = as_array(part["phash"].is_valid())
            self.data["known"] += known.tobytes()
            self.data["phash"] += hashes_of(part["phash"].drop_null()).tobytes()
            part = part.filter(pa.array(~known))  # these are told by their bytes
        if self.copies:
            self.data["digest"] += self._digests(part["sha256"]).tobytes()

    def _digests(self, texts: Any) -> np.ndarray:
        """(N, 2) of the pictures' sha256; those that have none are like no other."""
        known = as_array(texts.is_valid())
        digests = np.zeros((len(texts), 2), np.uint64)  # no sha256 begins with 64 zeros
        digests[known] = digests_of(texts.drop_null())
        count = len(known) - int(np.count_nonzero(known))
        digests[~known, 1] = np.arange(self.alone, self.alone + count)
        self.alone += count
        return digests

    def held(self) -> SelectionColumns:
        """Return what was collected."""
        columns = {name: np.frombuffer(data, self.types[name]) for name, data in self.data.items()}
        if "digest" in columns:
            columns["digest"] = columns["digest"].reshape(-1, 2)
        return SelectionColumns(np.frombuffer(self.mask, np.bool_), columns)


def numbers(part: Any, by: str | None) -> np.ndarray:
    """Return (N,) of a column, nan where there is no value."""
    if by is None:
        return np.full(len(part), np.nan)
    return as_array(column(part, by).cast("double")).astype(np.float64)


def as_array(values: Any) -> np.ndarray:
    """Return a pyarrow column as an array."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return (N,) True for the `count` best of scores (N,): of equal ones the first; nan is the worst."""
    if count >= len(scores):
        return np.ones(len(scores), bool)
    if count < 1:
        return np.zeros(len(scores), bool)
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    least = np.partition(ranked, -count)[-count]
    kept = ranked > least
    ties = np.flatnonzero(ranked == least)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def best_of_each(scores: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Return (N,) True for the `count` best of each code; `codes` (N,) are whole numbers."""
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1, append=-1))
    kept = np.zeros(len(codes), bool)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        members = order[start:stop]
        kept[members] = best_of(scores[members], count)
    return kept

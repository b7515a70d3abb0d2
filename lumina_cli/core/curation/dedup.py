"""Which pictures are copies of one another: exactly, by their bytes, or nearly, by their perceptual hashes.

N pictures. Near copies are found by bands: hashes that differ in at most k of 64 bits are equal in at least j
of any k + j pieces of them. So for each choice of j pieces only hashes equal there are compared. j is chosen
for the least work, which grows almost in step with N. Where thousands of hashes are nearly alike, each is
compared with a bounded number of neighbours only: they are one group by way of those.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numpy as np

from lumina_cli.core.errors import LuminaError

BITS = 64
SLICE = 1 << 22  # pairs that are compared at a time
HELD = 1 << 23  # close pairs that are held before they are merged
MOST_NEXT = 1024  # hashes that one is compared with at most, for one choice of pieces
MOST_TABLES = 600


def exact_groups(digests: Any) -> np.ndarray:
    """Return a group number (N,) for each text of a pyarrow column, equal for equal ones; null is alone."""
    codes = digests.combine_chunks().dictionary_encode().indices
    alone = codes.is_null().to_numpy(zero_copy_only=False)
    groups = codes.fill_null(0).to_numpy().astype(np.int64)
    groups[alone] = groups.max(initial=0) + 1 + np.arange(alone.sum())
    return groups


def digests_of(texts: Any) -> np.ndarray:
    """Return 128 bits, two uint64 (N, 2), of the sha256 texts of a pyarrow column without nulls."""
    import pyarrow as pa

    digits = texts.combine_chunks().cast(pa.large_binary())
    try:
        digits = digits.cast(pa.binary(64))
        start = 64 * digits.offset
        text = digits.buffers()[1].to_pybytes()[start : start + 64 * len(digits)] if len(digits) else b""
        return np.frombuffer(bytes.fromhex(text.decode()), np.uint64).reshape(-1, 4)[:, :2]
    except (ValueError, UnicodeDecodeError):  # another tool's index: whatever tells pictures from others
        found = b"".join(sha256(text).digest()[:16] for text in digits.to_pylist())
        return np.frombuffer(found, np.uint64).reshape(-1, 2)


def digest_groups(digests: np.ndarray) -> np.ndarray:
    """Return a group number (N,) for each of digests (N, 2), equal for equal ones."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    groups = np.zeros(len(digests), np.int64)
    new = np.zeros(max(0, len(digests) - 1), bool)
    for part in range(digests.shape[1]):
        ordered = digests[:, part][order]
        new |= ordered[1:] != ordered[:-1]
    groups[order[1:]] = np.cumsum(new)
    return groups


def hashes_of(texts: Any) -> np.ndarray:
    """Return the uint64 hashes (N,) that the texts of a pyarrow column, 16 hex digits each, stand for."""
    import pyarrow as pa

    try:
        digits = texts.combine_chunks().cast(pa.large_binary()).cast(pa.binary(16))
        start = 16 * digits.offset
        text = digits.buffers()[1].to_pybytes()[start : start + 16 * len(digits)] if len(digits) else b""
        return np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype(np.uint64)
    except (ValueError, UnicodeDecodeError) as error:  # pyarrow's own errors are ValueErrors
        raise LuminaError(
            "a 'phash' is not 16 hex digits; `lumina shard score --scores phash` makes them"
        ) from error


def near_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return a group number (N,) of uint64 hashes (N,): hashes at most `distance` bits apart share it.

    Groups are connected: where a is near b and b near c, all three are one group, however far a is from c.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, inverse = np.unique(hashes, return_inverse=True)
    labels = np.arange(len(unique))
    held: list[np.ndarray] = []

    def merge() -> None:
        nonlocal labels
        first, second = labels[np.concatenate(held, axis=1)]
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(unique),) * 2)
        labels = connected_components(graph, directed=False)[1][labels]
        held.clear()

    for pairs in near_pairs(unique, distance):
        held.append(pairs)
        if sum(each.shape[1] for each in held) > HELD:
            merge()
    if held:
        merge()
    return labels[inverse]


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yield (2, P) numbers of hashes at most `distance` bits apart; `hashes` (N,) are sorted and unlike.

    A pair may come more than once. Where over MOST_NEXT hashes are equal in what is compared, each meets only
    the next so many of them.
    """
    if distance < 1 or len(hashes) < 2:
        return
    pieces, chosen = choose_bands(len(hashes), distance)
    edges = np.linspace(0, BITS, pieces + 1).astype(int)
    masks = [sum(1 << bit for bit in range(low, high)) for low, high in pairwise(edges)]
    for choice in combinations(masks, chosen):
        keys = hashes & np.uint64(sum(choice))
        order = np.argsort(keys, kind="stable")
        yield from _close_in_runs(hashes, keys[order], order, distance)


def choose_bands(count: int, distance: int) -> tuple[int, int]:
    """Return (pieces, how many of them are equal) with the least work for `count` even hashes."""

    def work(equal: int) -> float:
        tables = comb(distance + equal, equal)
        alike = count / 2.0 ** (BITS * equal / (distance + equal))
        return tables * (16 + alike)  # a sort costs about as much as 16 comparisons

    options = [j for j in range(1, 9) if j == 1 or comb(distance + j, j) <= MOST_TABLES]
    best = min(options, key=work)
    return distance + best, best


def _close_in_runs(
    hashes: np.ndarray, keys: np.ndarray, order: np.ndarray, distance: int
) -> Iterator[np.ndarray]:
    """Yield close pairs among hashes whose keys are equal; `keys` are sorted, `order` says whose they are."""
    ends = np.searchsorted(keys, keys, "right")  # of the run that each is in
    left = np.flatnonzero(ends - np.arange(len(keys)) > 1)
    step = 1
    while len(left) and step <= MOST_NEXT:
        for start in range(0, len(left), SLICE):
            first = left[start : start + SLICE]
            a, b = order[first], order[first + step]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
            if close.any():
                yield np.stack([a[close], b[close]])
        step += 1
        left = left[ends[left] - left > step]


def keep_best(groups: np.ndarray, scores: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) True for one of each group: the best score, of equal ones the first; nan is the worst.

    With `pixels` (N,) the largest picture comes before the best score.
    """
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    keys = (-ranked, groups) if pixels is None else (-ranked, -pixels.astype(np.int64), groups)
    order = np.lexsort(keys)  # a stable sort: of equal ones the first comes first
    first = np.ones(len(groups), bool)
    first[1:] = groups[order][1:] != groups[order][:-1]
    kept = np.zeros(len(groups), bool)
    kept[order[first]] = True
    return kept

"""Duplicates among images: exact ones by their bytes, near ones by their perceptual hashes.

Near duplicates are found by banding (pigeonhole principle): if a hash of 64 bits is cut into k + j pieces,
two hashes that differ in at most k bits are equal in at least j pieces. So for each choice of j pieces, only
hashes that are equal in these pieces are compared. A larger j means more choices with fewer comparisons each;
j is chosen for the least work, which grows almost linearly with N. If thousands of hashes are nearly equal,
each is compared with a limited number of neighbors: the connected groups stay the same in practice, and the
work stays linear.

N images, P pairs.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numpy as np

from lumina_cli.core.errors import LuminaError

BITS = 64
SLICE = 1 << 22  # pairs compared at a time, which limits memory
MAX_PAIRS = 1 << 23  # pairs of near duplicates collected before they are merged into groups
MAX_NEIGHBORS = 1024  # hashes that each hash is compared with at most, for one choice of pieces
MAX_TABLES = 600  # choices of pieces at most


def exact_groups(digests: Any) -> np.ndarray:
    """Return a group number (N,) per text of a pyarrow column, equal for equal texts; nulls are unequal."""
    codes = digests.combine_chunks().dictionary_encode().indices
    alone = codes.is_null().to_numpy(zero_copy_only=False)
    groups = codes.fill_null(0).to_numpy().astype(np.int64)
    groups[alone] = groups.max(initial=0) + 1 + np.arange(alone.sum())
    return groups


def digests_of(texts: Any) -> np.ndarray:
    """Return digests (N, 2), two uint64 each, of the sha256 texts of a pyarrow column without nulls.

    128 bits suffice to distinguish a hundred million images, and need half of the memory.
    """
    import pyarrow as pa

    digits = texts.combine_chunks().cast(pa.large_binary())
    try:
        digits = digits.cast(pa.binary(64))
        start = 64 * digits.offset
        text = digits.buffers()[1].to_pybytes()[start : start + 64 * len(digits)] if len(digits) else b""
        return np.frombuffer(bytes.fromhex(text.decode()), np.uint64).reshape(-1, 4)[:, :2]
    except (ValueError, UnicodeDecodeError):  # the index of another tool may contain any identifier
        found = b"".join(sha256(text).digest()[:16] for text in digits.to_pylist())
        return np.frombuffer(found, np.uint64).reshape(-1, 2)


def digest_groups(digests: np.ndarray) -> np.ndarray:
    """Return a group number (N,) for each of the digests (N, 2), equal for equal digests."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    groups = np.zeros(len(digests), np.int64)
    new = np.zeros(max(0, len(digests) - 1), bool)
    for part in range(digests.shape[1]):
        ordered = digests[:, part][order]
        new |= ordered[1:] != ordered[:-1]
    groups[order[1:]] = np.cumsum(new)
    return groups


def hashes_of(texts: Any) -> np.ndarray:
    """Parse a pyarrow column of perceptual hashes, 16 hex digits each, as uint64 (N,).

    Raises:
        LuminaError: if a text is not 16 hex digits.
    """
    import pyarrow as pa

    try:
        digits = texts.combine_chunks().cast(pa.large_binary()).cast(pa.binary(16))
        start = 16 * digits.offset
        text = digits.buffers()[1].to_pybytes()[start : start + 16 * len(digits)] if len(digits) else b""
        return np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype(np.uint64)
    except (ValueError, UnicodeDecodeError) as error:  # pyarrow's own errors are ValueErrors
        raise LuminaError(
            "a 'phash' is not 16 hex digits; recompute it with `lumina shard score --scores phash`"
        ) from error


def near_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return the group number (N,) of each of the uint64 hashes (N,).

    Hashes at most `distance` bits apart are in one group. Groups are connected components: if a is near b and
    b is near c, all three are one group, even if a is far from c.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, inverse = np.unique(hashes, return_inverse=True)
    labels = np.arange(len(unique))
    pending: list[np.ndarray] = []

    def merge() -> None:
        """Unite the groups that the pending pairs connect, so that pairs need not be kept."""
        nonlocal labels
        first, second = labels[np.concatenate(pending, axis=1)]
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(unique),) * 2)
        labels = connected_components(graph, directed=False)[1][labels]
        pending.clear()

    for pairs in near_pairs(unique, distance):
        pending.append(pairs)
        if sum(each.shape[1] for each in pending) > MAX_PAIRS:
            merge()
    if pending:
        merge()
    return labels[inverse]


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yield indices (2, P) of hashes at most `distance` bits apart; `hashes` (N,) are sorted and unique.

    A pair may occur more than once. If more than MAX_NEIGHBORS hashes are equal in the compared pieces, each
    is compared only with the next MAX_NEIGHBORS of them.
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
    """Return (k + j pieces, j equal pieces) with the least work for `count` uniformly distributed hashes."""

    def work(equal: int) -> float:
        """Return the work per hash, in comparisons, if `equal` pieces are equal."""
        tables = comb(distance + equal, equal)
        alike = count / 2.0 ** (BITS * equal / (distance + equal))
        return tables * (16 + alike)  # sorting costs about 16 comparisons

    options = [j for j in range(1, 9) if j == 1 or comb(distance + j, j) <= MAX_TABLES]
    best = min(options, key=work)
    return distance + best, best


def _close_in_runs(
    hashes: np.ndarray, keys: np.ndarray, order: np.ndarray, distance: int
) -> Iterator[np.ndarray]:
    """Yield pairs (2, P) of near hashes with equal keys; `keys` (N,) are sorted, `order` (N,) their hashes.

    Pass `step` compares each hash with the one `step` places later in its run of equal keys, for all runs at
    once; hashes whose run ends there drop out.
    """
    ends = np.searchsorted(keys, keys, "right")  # end of the run of each hash
    left = np.flatnonzero(ends - np.arange(len(keys)) > 1)
    step = 1
    while len(left) and step <= MAX_NEIGHBORS:
        for start in range(0, len(left), SLICE):
            first = left[start : start + SLICE]
            a, b = order[first], order[first + step]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
            if close.any():
                yield np.stack([a[close], b[close]])
        step += 1
        left = left[ends[left] - left > step]


def keep_best(groups: np.ndarray, scores: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) True for one sample per group (N,): the highest score, the first of equal ones.

    A score of nan is the lowest. With `pixels` (N,), the largest image is kept, and the score decides among
    equally large ones.
    """
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    keys = (-ranked, groups) if pixels is None else (-ranked, -pixels.astype(np.int64), groups)
    order = np.lexsort(keys)  # stable: equal samples keep their order
    first = np.ones(len(groups), bool)
    first[1:] = groups[order][1:] != groups[order][:-1]
    kept = np.zeros(len(groups), bool)
    kept[order[first]] = True
    return kept

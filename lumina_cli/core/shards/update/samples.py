"""The samples of a finished folder, and which of them a row of the input is.

A row is the sample that was packed from the same file under the same key. A row without a file (an image in
memory) is the sample with the same key; so is a row whose file has another path, if the image is the same: a
folder that was moved has the same samples.

Rows in the order of the shards are matched one by one. Other orders need a table with 33 bytes per sample,
and 80 while it is sorted.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.secrets import mask_url
from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.sample import raw_key
from lumina_cli.core.shards.tar import index_path, read_index, sanitize_key

_NUMBERED = re.compile(r"-\d+$")  # what makes a key unique
LINES = 200_000  # lines of indexes in memory, for rows in another order than the shards
Compare = Callable[[dict, dict], bool]


@dataclass(frozen=True)
class PackedSample:
    """A sample of a folder, with the number of its shard and its line of the index.

    moved   whether the row that it is names another path
    same    whether that row has the same fields
    """

    shard: int
    entry: dict
    moved: bool = False
    same: bool = False


class PackedSamples:
    """The samples of a folder, and which of them rows of the input were matched with.

    tars        "tars" of shards.json
    same_image  whether the image of a row has the content of a sample's image: (row, line of the index)
    same_row    whether the fields of a row are those of a sample
    """

    def __init__(self, dest: str, tars: list[list], same_image: Compare, same_row: Compare):
        self.dest, self.same_image, self.same_row = dest, same_image, same_row
        self.names = [name for name, *_ in tars]
        self.ends = np.cumsum([samples for _, samples, *_ in tars], dtype=np.int64)
        self.found = np.zeros(int(self.ends[-1]) if tars else 0, bool)
        self.left = {int(name[:-4]): samples for name, samples, *_ in tars}  # unmatched samples by shard
        self.next = 0  # the sample after the last match
        self.table: tuple[np.ndarray, np.ndarray] | None = None
        most = max((samples for _, samples, *_ in tars), default=1)
        self._lines = lru_cache(max(4, LINES // most))(self._read_lines)
        self._entry = lru_cache(64)(self._parse_entry)

    def find(self, row: dict) -> PackedSample | None:
        """Return the sample that a row is, and mark it as found; None for a new row."""
        origin = origin_of(row)
        key = sanitize_key(raw_key(row, image_ref(row.get("image")).origin), {})
        if self.next < len(self.found) and not self.found[self.next]:
            entry = self._entry(self.next)
            expected = is_same_place(origin, entry.get("origin")) and is_same_key(key, entry["key"])
            if expected and self.same_row(row, entry) and (origin or self.same_image(row, entry)):
                return self._take(self.next, entry, False, True)
        for number in [] if self.found.all() else self._candidates(row, origin, key):
            entry = self._entry(number)
            moved = not is_same_place(origin, entry.get("origin"))
            sure = entry["key"] == key if origin is None else True
            if (not moved and sure) or (is_same_key(key, entry["key"]) and self.same_image(row, entry)):
                return self._take(number, entry, moved, self.same_row(row, entry))
        return None

    def _candidates(self, row: dict, origin: str | None, key: str) -> Iterator[int]:
        """Yield the numbers of samples that a row may be, the best ones first."""
        if origin is not None:
            numbers = self._lookup("file", _file_and_key(origin, key))
            numbers = [number for number in numbers if is_same_key(key, self._entry(number)["key"])]
            if len(numbers) > 1:
                numbers.sort(key=lambda number: self._difference(row, key, self._entry(number)))
            yield from numbers
        unique, count = key, 1
        while numbers := self._lookup("key", unique, found=True):
            yield from (number for number in numbers if not self.found[number])
            count += 1
            unique = f"{key}-{count}"

    def _difference(self, row: dict, key: str, entry: dict) -> tuple[bool, bool]:
        return not self.same_row(row, entry), key != entry["key"]

    def _lookup(self, kind: str, text: str, found: bool = False) -> list[int]:
        """Return the numbers of the samples with this file or key; with `found` also of matched ones."""
        if self.table is None:
            self.table = self._index()
        hashes, numbers = self.table
        wanted = _hash(kind, text)
        start, stop = np.searchsorted(hashes, np.array([wanted, wanted + 1], np.uint64))
        return [int(number) for number in numbers[start:stop] if found or not self.found[number]]

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted hashes of the files and keys of all samples, and the numbers of the samples."""
        hashes, numbers = np.empty(2 * len(self.found), np.uint64), np.empty(2 * len(self.found), np.int64)
        at = number = 0
        for name in self.names:
            for entry in read_index(filesystem.join(self.dest, name)):
                names = [("key", entry["key"])]
                if origin := entry.get("origin"):
                    names.append(("file", _file_and_key(origin, entry["key"])))
                for kind, text in names:
                    hashes[at], numbers[at] = _hash(kind, text), number
                    at += 1
                number += 1
        order = np.argsort(hashes[:at], kind="stable")
        return hashes[order], numbers[order]

    def _read_lines(self, place: int) -> list[bytes]:
        return filesystem.read_file(index_path(filesystem.join(self.dest, self.names[place]))).splitlines()

    def _parse_entry(self, number: int) -> dict:
        """Return the line of the index of a sample."""
        place = int(np.searchsorted(self.ends, number, side="right"))
        start = int(self.ends[place - 1]) if place else 0
        return parse_row(self._lines(place)[number - start].decode(), self.names[place])

    def _take(self, number: int, entry: dict, moved: bool, same: bool) -> PackedSample:
        shard = int(self.names[int(np.searchsorted(self.ends, number, side="right"))][:-4])
        self.found[number] = True
        self.left[shard] -= 1
        self.next = number + 1
        return PackedSample(shard, entry, moved, same)

    def unmatched(self) -> Iterator[PackedSample]:
        """Yield the samples that no row of the input is, in order."""
        for number in np.flatnonzero(~self.found):
            place = int(np.searchsorted(self.ends, number, side="right"))
            yield PackedSample(int(self.names[place][:-4]), self._entry(int(number)))


def origin_of(row: dict) -> str | None:
    """Return the file that a row is from, as its sample stores it; None for an image in memory."""
    origin = row.get("origin", image_ref(row.get("image")).origin)
    return mask_url(origin) if isinstance(origin, str) and origin else None


def place_of(origin: str) -> str:
    """Return a file as it is compared: paths are absolute, so that "photos" and "./photos" are the same."""
    return origin if filesystem.is_url(origin) else os.path.abspath(origin)


def is_same_place(origin: str | None, other: str | None) -> bool:
    """Whether two origins are the same file; two images in memory have the same place."""
    if origin is None or not other:
        return origin is None and not other
    return origin == other or place_of(origin) == place_of(other)


def is_same_key(key: str, unique: str) -> bool:
    """Whether a key is one that `key` was made unique as."""
    return key == unique or (unique.startswith(f"{key}-") and unique[len(key) + 1 :].isdecimal())


def _file_and_key(origin: str, key: str) -> str:
    """Return a text that is the same for all samples of a file whose keys were made unique."""
    return f"{place_of(origin)}\0{_NUMBERED.sub('', key)}"


def _hash(kind: str, text: str) -> int:
    digest = hashlib.blake2b(f"{kind} {text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # one more must fit into 64 bits, too


def shard_index(dest: str, number: int) -> list[dict]:
    """Return the index of a shard; [] if the folder does not have this shard."""
    tar = filesystem.join(dest, f"{number:06d}.tar")
    return read_index(tar) if filesystem.is_file(index_path(tar)) else []

"""Repeated captions: the number of different texts, and the most frequent ones."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import with_captions
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.reader import split_source
from lumina_cli.core.shards.reader import open_shards, read_entry
from lumina_cli.core.shards.selection import is_selection, selected_entries
from lumina_cli.core.shards.tar import iter_index

EXAMINED, REMOTE = 100_000, 5_000  # most samples whose captions are read: local shards, shards at a URL
AT_ONCE = 32  # rows read concurrently from a URL
HELD = 4096  # texts counted at once; texts of more than 1/HELD of all captions are never missed
SHOWN, MOST_CHARACTERS = 5, 200
MANY, LARGE_SHARE, FEWEST = 1000, 0.1, 20  # a text of MANY samples, or of a large share, is reported


class CaptionTexts:
    """Counts equal captions in bounded memory: 8 bytes per caption, and HELD texts.

    Frequent texts are found by the algorithm of Misra and Gries (1982), and then counted by their hashes.
    """

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.held: Counter[str] = Counter()

    def add_row(self, row: dict) -> None:
        """Count the captions of a row."""
        for levels in get_captions(row).values():
            for text in levels.values():
                self.add(text)

    def add(self, text: str) -> None:
        """Count a caption."""
        self.hashes.append(_hash(text))
        if text in self.held or len(self.held) < HELD:
            self.held[text] += 1
        else:
            self.held = Counter({each: n - 1 for each, n in self.held.items() if n > 1})

    def summary(self, captions: int) -> dict:
        """Return how many of `captions` were examined, how many of these differ, and the most frequent ones.

        The counts of the latter are extrapolated to all captions.
        """
        hashes, counts = np.unique(np.frombuffer(self.hashes, np.uint64), return_counts=True)
        if not len(hashes):
            return {"examined": 0, "different": 0, "most_frequent": []}
        at = np.searchsorted(hashes, np.array([_hash(text) for text in self.held], np.uint64))
        found = Counter(dict(zip(self.held, counts[at].tolist(), strict=True)))
        examined = len(self.hashes)
        frequent = []
        for text, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
            shown = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
            number = round(count * max(captions, examined) / examined)
            frequent.append({"text": shown, "captions": number, "share": round(count / examined, 5)})
        return {"examined": examined, "different": len(hashes), "most_frequent": frequent}


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little"
    )


def repeated_caption(summary: dict) -> str | None:
    """Return a message if very many samples share one caption, else None; `summary` is that of stats."""
    most = (summary["caption_texts"]["most_frequent"] or [None])[0]
    if most is None:
        return None
    count, share = most["captions"], most["share"]
    if count < MANY and (count < FEWEST or share < LARGE_SHARE):
        return None
    total = sum(kind["captions"] for kind in summary["captions"].values())
    return f"{count} of {total} captions are the same text: {most['text']!r}"


def examine_samples(source: str, samples: int, texts: CaptionTexts) -> None:
    """Count the captions of a SOURCE of shards without overlays; of many samples, only evenly spaced ones."""
    remote = filesystem.is_url(split_source(source)[0])
    step = -(-samples // (REMOTE if remote else EXAMINED))
    lines = (line for number, line in enumerate(_lines(source)) if number % step == 0)
    for row in _read(lines, remote):
        texts.add_row(with_captions(row))


def _lines(source: str) -> Iterator[tuple[str, dict]]:
    """Yield (tar, line of its index) of each sample."""
    if is_selection(source):
        for tar, _, chosen in selected_entries(source):
            yield from ((tar, line) for line in chosen)
    else:
        for tar in open_shards(split_source(source)[0]):
            yield from ((tar, line) for line in iter_index(tar))


def _read(lines: Iterable[tuple[str, dict]], remote: bool) -> Iterator[dict[str, Any]]:
    if not remote:
        yield from (read_entry(tar, line) for tar, line in lines)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda each: read_entry(*each), lines)

"""Which process draws which rows, and which pictures are drawn together."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.jsonl import parse_split

MOST = 16  # pictures in a batch
TOKENS = 9000  # in a batch: two pictures of 1024x1024 with their captions
LOOKAHEAD = 4  # batches that are read ahead, so that pictures of one kind find each other


@dataclass(frozen=True)
class Split:
    """A share of the rows: those whose number, from 0, is `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Whether row `number` is in this share."""
        return number % self.count == self.index

    def size(self, rows: int) -> int:
        """Return how many of `rows` rows are in this share."""
        return len(range(self.index, rows, self.count))


def read_split(text: str | None = None, shared: bool = False) -> Split:
    """Return the share that "I/N" names; where torchrun started several processes, this one's part of it.

    UsageError where `text` is something else, I is not from 0 to N - 1, or torchrun's processes would read
    their rows from one stream (`shared`).
    """
    index, count = parse_split(text)
    rank, world = torchrun()
    if shared and world > 1:
        raise UsageError(f"{world} processes cannot share one stdin; name a file of rows")
    return Split(index + count * rank, count * world)


def torchrun() -> tuple[int, int]:
    """Return (number of this process, number of processes) as torchrun says; (0, 1) where it started none."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        raise UsageError(f"RANK {rank!r} of WORLD_SIZE {world!r} in the environment are not torchrun's")
    return int(rank), int(world)


def own_device() -> str | None:
    """Return the CUDA device of this process of torchrun's; None where there is nothing to share."""
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    if torchrun()[1] == 1 or not local.isdecimal() or not torch.cuda.is_available():
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"


class Schedulable(Protocol):
    """What can be put into a batch: its place in the order of rows, its size in pixels, its text tokens."""

    place: int
    size: tuple[int, int]
    tokens: int


def in_windows(tasks: Iterable[Schedulable], most: int | None, side: int) -> Iterator[list]:
    """Yield tasks in order, as many at a time as LOOKAHEAD batches of the first one's size and kind."""
    tasks = iter(tasks)
    for first in tasks:
        yield [first, *islice(tasks, LOOKAHEAD * (most or fitting_batch(first.size, first.tokens, side)) - 1)]


def in_batches(tasks: Iterable[Schedulable], most: int | None, side: int) -> list[list]:
    """Put pictures of one size, and captions of about one length, together; earlier rows come first.

    Without `most`, a batch holds up to MOST pictures and about TOKENS tokens, `side` pixels wide and high.
    """
    by_size = defaultdict(list)
    for task in tasks:
        by_size[task.size].append(task)
    batches = []
    for size, group in by_size.items():
        group.sort(key=lambda task: (-task.tokens, task.place))
        while group:
            limit = most or fitting_batch(size, group[0].tokens, side)
            batches.append(sorted(group[:limit], key=lambda task: task.place))
            del group[:limit]
    return sorted(batches, key=lambda batch: batch[0].place)


def fitting_batch(size: tuple[int, int], tokens: int, side: int) -> int:
    """Return how many pictures of a size, with captions of so many tokens, are drawn at once."""
    each = size[0] * size[1] // side**2 + tokens
    return min(MOST, max(1, TOKENS // each))

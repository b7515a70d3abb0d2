"""Batching: which process generates which rows, and which images are generated together."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.jsonl import parse_split

MAX_BATCH = 16  # images
MAX_TOKENS = 9000  # per batch, about two images of 1024x1024 with their captions
LOOKAHEAD = 4  # batches to read ahead, so that images of one size can be batched


@dataclass(frozen=True)
class Split:
    """A fraction of the rows: those whose number, from 0, is `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Whether row `number` is in this split."""
        return number % self.count == self.index

    def size(self, rows: int) -> int:
        """Return how many of `rows` rows are in this split."""
        return len(range(self.index, rows, self.count))


def read_split(text: str | None = None, shared: bool = False) -> Split:
    """Return the split that "I/N" describes, divided further among the processes of torchrun.

        text     "I/N", I from 0 to N - 1; None: all rows
        shared   whether all processes would read the rows from one stream

    Raises:
        UsageError: if `text` is invalid, or several processes would share one stream.
    """
    index, count = parse_split(text)
    rank, world = torchrun_rank()
    if shared and world > 1:
        raise UsageError(f"{world} processes cannot share one stdin; name a file of rows")
    return Split(index + count * rank, count * world)


def torchrun_rank() -> tuple[int, int]:
    """Return (rank, world size) from the environment of torchrun; (0, 1) without torchrun.

    Raises:
        UsageError: if RANK or WORLD_SIZE is invalid.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        raise UsageError(f"invalid torchrun environment: RANK={rank!r}, WORLD_SIZE={world!r}")
    return int(rank), int(world)


def local_device() -> str | None:
    """Return the CUDA device of this torchrun process; None without torchrun or CUDA."""
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    if torchrun_rank()[1] == 1 or not local.isdecimal() or not torch.cuda.is_available():
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"


class Schedulable(Protocol):
    """An image to schedule: its position in the output, its size in pixels, its number of text tokens."""

    position: int
    size: tuple[int, int]
    tokens: int


def read_windows(tasks: Iterable[Schedulable], limit: int | None, token_side: int) -> Iterator[list]:
    """Yield tasks in order, in groups of LOOKAHEAD batches; the first task of a group sets the batch size.

    A group is all that is read ahead, so a stream of rows starts to generate after a few of them.
    """
    tasks = iter(tasks)
    for first in tasks:
        batch = limit or default_batch_size(first.size, first.tokens, token_side)
        yield [first, *islice(tasks, LOOKAHEAD * batch - 1)]


def plan_batches(tasks: Iterable[Schedulable], limit: int | None, token_side: int) -> list[list]:
    """Return batches of one image size and similar caption lengths, in the order of their first task.

        limit        images per batch; None: as many as `default_batch_size` allows
        token_side   width and height in pixels of an image token

    Tasks of a size are sorted by caption length, longest first: a batch is padded to its longest caption, so
    neighbours in this order waste the fewest tokens, and the first task of each batch bounds its size.
    """
    by_size = defaultdict(list)
    for task in tasks:
        by_size[task.size].append(task)
    batches = []
    for size, group in by_size.items():
        group.sort(key=lambda task: (-task.tokens, task.position))
        while group:
            count = limit or default_batch_size(size, group[0].tokens, token_side)
            batches.append(sorted(group[:count], key=lambda task: task.position))
            del group[:count]
    return sorted(batches, key=lambda batch: batch[0].position)


def default_batch_size(size: tuple[int, int], text_tokens: int, token_side: int) -> int:
    """Return how many images of a size (width, height), with captions of `text_tokens`, form a batch."""
    tokens = size[0] * size[1] // token_side**2 + text_tokens
    return min(MAX_BATCH, max(1, MAX_TOKENS // tokens))

"""The plan of an update: which shards of a finished folder must be rewritten, and which are added.

Samples that did not change keep their key and their shard. A changed sample is replaced in its shard. New
rows fill the last shard, if it is not full, and then new shards. So if the input only continues, the result
is the same as that of one run over all rows.

The input is read once. An edit is yielded as soon as all that it needs is known: few rows are in memory, and
workers can begin before the input ends. Nothing that they write is visible before the update is committed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lumina_cli.core.errors import UsageError
from lumina_cli.core.shards.journal import check_number, digest_rows, encode_images
from lumina_cli.core.shards.sample import ShardSettings
from lumina_cli.core.shards.update.changes import RowChange, RowComparison
from lumina_cli.core.shards.update.edit import ShardEdit
from lumina_cli.core.shards.update.rejects import KnownRejects, count_rows
from lumina_cli.core.shards.update.samples import PackedSample, PackedSamples, origin_of

REMOVED = ("drop", "keep")
NAMED = 3  # rows that a message names


@dataclass
class Named:
    """A number of rows and the names of the first ones."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self.names) < NAMED:
            self.names.append(name)

    def __str__(self) -> str:
        more = ["..."] if self.count > len(self.names) else []
        return ", ".join([*self.names, *more])


@dataclass
class _Pending:
    """What is known of the edit of a shard so far."""

    changed: list[RowChange] = field(default_factory=list)
    added: list[tuple[int, dict]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class UpdatePlan:
    """What an update of the finished folder `dest` changes; complete when `edits` is exhausted.

    totals    content of shards.json
    removed   what happens to samples that no row of the input is: "drop", "keep", or None: an error

    added, changed, new_images, gone    rows, for messages
    slots                               places in shards that are used; rejected rows use one, too
    input                               the digest of all rows
    """

    def __init__(self, dest: str, totals: dict, making: ShardSettings, removed: str | None = None):
        self.dest, self.making, self.removed = dest, making, removed
        self.per_shard = totals["settings"]["per_shard"]
        self.bases = {int(name[:-4]): digest for name, _, _, digest, _ in totals["tars"]}
        self.comparison = RowComparison(dest, making)
        self.samples = PackedSamples(
            dest, totals["tars"], self.comparison.same_image, self.comparison.same_row
        )
        self.rejects = KnownRejects(dest, totals, making)
        self.slots = totals.get("slots", count_rows(totals))
        self.pending: dict[int, _Pending] = {}
        self.added, self.changed, self.new_images, self.gone = Named(), Named(), Named(), Named()
        self.rows, self._group, self._digest = 0, [], hashlib.sha256()

    @property
    def input(self) -> str:
        """The digest of all rows, as that of a first run."""
        digest = self._digest.copy()
        if self._group:
            digest.update(digest_rows(self._group)[0].encode())
        return digest.hexdigest()

    def edits(self, rows: Iterable[dict]) -> Iterator[ShardEdit]:
        """Yield the edits that make the folder hold these rows.

        Raises:
            UsageError: at the end, if samples are not in the input and `removed` is None.
        """
        for row in rows:
            (row,) = encode_images([row])
            number = self.rows
            self._count(row)
            if not self.rejects.take(number, row):
                yield from self._place(number, row)
        self._find_removed()
        yield from map(self._edit, sorted(self.pending))

    def _count(self, row: dict) -> None:
        self.rows += 1
        self._group.append(row)
        if len(self._group) == self.per_shard:
            self._digest.update(digest_rows(self._group)[0].encode())
            self._group = []

    def _place(self, number: int, row: dict) -> Iterator[ShardEdit]:
        """Compare a row with its sample, or give it a place; yield the edit of a shard that is complete."""
        sample = self.samples.find(row)
        if sample is None:
            shard = self.slots // self.per_shard
            check_number(shard)
            self.pending.setdefault(shard, _Pending()).added.append((number, row))
            self.added.add(origin_of(row) or str(row.get("key")))
            self.slots += 1
        else:
            shard = sample.shard
            if change := self.comparison.compare(number, row, sample):
                self.pending.setdefault(shard, _Pending()).changed.append(change)
                if change.image:
                    self.new_images.add(_name_of(sample))
                else:
                    first = self.changed.count < NAMED
                    fields = self.comparison.changed_fields(row, sample) if first else []
                    self.changed.add(
                        f"{_name_of(sample)}: {', '.join(fields)}" if fields else _name_of(sample)
                    )
        if (
            shard in self.pending
            and shard < self.slots // self.per_shard
            and not self.samples.left.get(shard)
        ):
            yield self._edit(shard)

    def _find_removed(self) -> None:
        """Find the samples that no row of the input is.

        Raises:
            UsageError: if there are any, and `removed` is None.
        """
        for sample in self.samples.unmatched():
            self.gone.add(_name_of(sample))
            if self.removed == "drop":
                self.pending.setdefault(sample.shard, _Pending()).removed.append(sample.entry["key"])
        if not self.gone.count or self.removed is not None:
            return
        total = len(self.samples.found)
        if self.gone.count == total:
            raise UsageError(
                f"{self.dest} holds shards of different rows: the input has none of its {total} samples "
                f"({self.gone}); use --force to replace them, or --removed keep to add the rows to them"
            )
        raise UsageError(
            f"{self.dest} holds {self.gone.count} of {total} samples that the input does not have "
            f"({self.gone}); use --removed drop to remove them, or --removed keep to keep them"
        )

    def _edit(self, shard: int) -> ShardEdit:
        found = self.pending.pop(shard)
        removed, changed, added = tuple(found.removed), tuple(found.changed), tuple(found.added)
        base, keep = self.bases.get(shard), self.removed == "keep"
        return ShardEdit(self.dest, shard, self.making, base, removed, changed, added, keep)


def _name_of(sample: PackedSample) -> str:
    return sample.entry.get("origin") or sample.entry["key"]

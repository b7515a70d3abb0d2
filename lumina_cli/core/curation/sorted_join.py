"""Joins of the sample table with overlays and selections, which are all sorted by shard."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.overlays.joiner import belongs_to_shards
from lumina_cli.core.shards.overlays.reader import Overlay, writing_command
from lumina_cli.core.shards.overlays.writer import COLUMNS, VALUES


class OverlayValues:
    """The table of values of an overlay.

    names  column of the sample table -> column of the overlay's table
    types  column of the sample table -> pyarrow type
    """

    def __init__(self, overlay: Overlay, reserved: Collection[str]):
        self.overlay, self.place = overlay, filesystem.join(overlay.folder, VALUES)
        self.known = False  # whether the overlay belongs to its shards
        self.names, self.types = {}, {}
        for field in list(manifest.read_schema(self.place, "overlay"))[
            3:
        ]:  # after shard, key and the image's digest
            name = field.name
            for prefix in COLUMNS.values():
                name = name.removeprefix(prefix)
            # A value must not replace a column of the manifest, except for the score of the rows.
            if name not in reserved or name == field.name == "score":
                self.names[name], self.types[name] = field.name, field.type

    def open(self, columns: Sequence[str]) -> "SortedJoin":
        """Return its rows with those of `columns` that it contains."""
        stored = [kept for name, kept in self.names.items() if name in columns]
        return SortedJoin(self.place, ["shard", "key", "picture", *stored], "overlay")

    def apply(self, table: Any, values: Any) -> Any:
        """Add or replace columns of `table` by some of its rows; rows without a value keep that of the table.

        Values of images that an update of the shards replaced are left out.

        Raises:
            LuminaError: if the overlay was written for other shards.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        at = find_rows(table, values)
        taken = values.take(pa.array(at, mask=at < 0))
        same = pc.or_kleene(pc.equal(taken["picture"], table["sha256"]), pc.is_null(table["sha256"]))
        same = pc.and_kleene(same, pc.is_valid(taken["picture"])).fill_null(False)
        if len(values):
            self._check(bool(pc.any(same).as_py()))
        for name, stored in self.names.items():
            if stored in taken.column_names:
                new = pc.if_else(same, taken[stored], pa.scalar(None, taken[stored].type))
                if name in table.column_names:
                    new = pc.coalesce(new, table[name])
                    table = table.drop_columns([name])
                table = table.append_column(name, new)
        return table

    def _check(self, matched: bool) -> None:
        """Check that the overlay belongs to its shards, unless a sample `matched`."""
        if not self.known and not matched and not belongs_to_shards(self.overlay):
            raise LuminaError(
                f"overlay {self.overlay.name}@{self.overlay.version} does not match: {self.overlay.shards} "
                f"contains different images; recreate the overlay with {writing_command(self.overlay.name)}"
            )
        self.known = True


class SortedJoin:
    """A parquet file in the order of the shards, read in step with the sample table.

    place    path of the file
    columns  columns to read; the first ones are shard and key
    kind     "overlay" or "selection", for error messages

    Both tables are sorted by shard. So the join needs only the rows of the shards of one part at a time,
    regardless of the number of samples.
    """

    def __init__(self, place: str, columns: list[str], kind: str):
        import pyarrow as pa

        types = manifest.read_schema(place, kind)
        self.none = pa.schema([types.field(name) for name in columns]).empty_table()
        batches = manifest.read_batches(place, columns, kind)
        self.parts = (pa.Table.from_batches([batch]).select(columns) for batch in batches)
        self.waiting = self.none

    def until(self, shard: str) -> Any:
        """Return the rows of all shards up to `shard`, without those that were returned before."""
        import pyarrow as pa
        import pyarrow.compute as pc

        taken = [self.none]
        while self.has_more():
            count = pc.sum(pc.less_equal(self.waiting["shard"], shard)).as_py()
            taken.append(self.waiting.slice(0, count))
            self.waiting = self.waiting.slice(count)
            if len(self.waiting):  # its first row belongs to a later shard
                break
        return pa.concat_tables(taken)

    def has_more(self) -> bool:
        """Return whether there are rows that were not returned yet; reads the next batch if needed."""
        while not len(self.waiting):
            found = next(self.parts, None)
            if found is None:
                return False
            self.waiting = found
        return True


def align_to_shards(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the same rows in tables that end at the end of a shard.

    The last shard of a table may continue in the next one, so its rows wait for it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    waiting = None
    for part in parts:
        waiting = pa.concat_tables([waiting, part]) if waiting is not None else part
        start = pc.index(waiting["shard"], waiting["shard"][-1]).as_py() if len(waiting) else 0
        if start:
            yield waiting.slice(0, start)
            waiting = waiting.slice(start)
    if waiting is not None and len(waiting):
        yield waiting


def missing_samples(selection: str) -> LuminaError:
    """Return the error for a selection of samples that its shards do not contain."""
    return LuminaError(
        f"{selection} selected samples that its shards no longer contain; rerun `lumina shard select`"
    )


def find_rows(rows: Any, table: Any) -> np.ndarray:
    """Return the index (N,) in `table` of each of N rows, by shard and key; -1 if it is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [
        pc.binary_join_element_wise(each["shard"], each["key"], "/").cast(pa.large_string())
        for each in (rows, table)
    ]
    if names[0].equals(names[1]):  # the usual case, without a hash table
        return np.arange(len(rows))
    at = pc.index_in(names[0], value_set=names[1].combine_chunks())
    return at.fill_null(-1).to_numpy().astype(np.int64)

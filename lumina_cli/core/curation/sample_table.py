"""What is known of every sample of shards as a table, without opening a tar: sizes, captions, scores.

Columns, a row a sample in the order of the shards (pyarrow):

    shard key image sha256 source       as in the manifest; source may be null
    width height                        as seen
    languages levels characters tokens  lists, an item a caption; tokens may be null
    score, NAME...                      numbers, from the rows and from the newest overlays, which win
    phash...                            hashes as text

A selection gives its samples only. Shards that have no manifest.parquet are read by their indexes. Shards,
selections and the values of overlays are all in the order of the shards' names, so they are read side by
side, and what is held at a time does not grow with the samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import chunked, with_captions
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.overlays.reader import Overlay, find_overlays, folder_of_shards, split_source
from lumina_cli.core.shards.overlays.writer import COLUMNS, VALUES
from lumina_cli.core.shards.reader import index_path, iter_index, open_shards, read_entry
from lumina_cli.core.shards.selection import TABLE, is_selection, read_samples, selected_shards

PLACE = ("shard", "key", "image", "sha256")
SIZES = ("width", "height", "source", "notes")
CAPTIONS = ("languages", "levels", "characters", "tokens")
_OWN = (*PLACE, *SIZES, *CAPTIONS, "score")


def open_samples(source: str, captions: bool = False) -> tuple[str, Any]:
    """Return (the folder of shards, the whole table of a SOURCE); without `captions`, none of their columns.

    LuminaError where an overlay is about other pictures than the shards hold now.
    """
    import pyarrow as pa

    samples = Samples(source)
    names = [name for name in samples.empty.column_names if captions or name not in CAPTIONS]
    return samples.folder, pa.concat_tables(_roomy(part) for part in samples.parts(names))


def _roomy(table: Any) -> Any:
    """A table whose texts may be more than 2 GiB a column, which those of a hundred million samples are."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


class Samples:
    """The table of a SOURCE of shards, in parts.

    folder    of the shards
    empty     the table without its rows: which columns there are
    """

    def __init__(self, source: str):
        self.source = source
        bare, wanted = split_source(source)
        self.selection = bare if is_selection(bare) else None
        self.shards = selected_shards(bare) if self.selection else bare
        self.folder = folder_of_shards(self.shards)
        self.tars = open_shards(self.shards)
        self.whole = not self.shards.endswith(".tar") and filesystem.is_file(
            filesystem.join(self.shards, manifest.NAME)
        )
        overlays = find_overlays(self.folder, wanted)
        self.rewritten = any("captions" in overlay.info.get("fields", ()) for overlay in overlays)
        found = [
            _OverlayValues(each)
            for each in overlays
            if filesystem.is_file(filesystem.join(each.folder, VALUES))
        ]
        names = manifest.read_score_names(self.shards) if self.whole else _names_in(self.tars)
        self.names = {name: name for name in _OWN}  # of a column: what the manifest calls it
        self.names |= {name: manifest.SCORE + name for name in names if name not in self.names}
        self.values = [each for each in found if each.names]
        self.empty = self._empty(names)

    def _empty(self, names: Sequence[str]) -> Any:
        import pyarrow as pa

        types = manifest.manifest_schema(names)
        fields = {name: types.field(stored).type for name, stored in self.names.items()}
        for each in self.values:
            fields |= {name: type for name, type in each.types.items() if name not in fields}
        return pa.schema(list(fields.items())).empty_table()

    def parts(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield tables with these columns, at least one; of whole shards where they are joined with others.

        LuminaError where an overlay is about other pictures than the shards hold now, or a selection about
        samples that they do not hold.
        """
        columns = list(dict.fromkeys(columns))
        values = [each for each in self.values if each.names.keys() & set(columns)]
        joined = [*(("shard", "key") if values or self.selection else ()), *(("sha256",) if values else ())]
        base = [name for name in dict.fromkeys([*joined, *columns]) if name in self.names]
        parts = self._base(base or ["key"])
        parts = _whole_shards(parts) if joined else parts
        place = filesystem.join(self.selection, TABLE) if self.selection else ""
        chosen = _SortedJoin(place, ["shard", "key"], "selection") if place else None
        alongs = [(each, each.open(columns)) for each in values]
        again = self.rewritten and set(CAPTIONS) & set(columns)
        rows = read_samples(self.source) if again else iter(())
        some = False
        for part in parts:
            last = part["shard"][-1].as_py() if joined else None
            if chosen is not None:
                part = part.take(_positions(part, chosen.until(last), self.selection))
            for each, along in alongs:
                part = each.laid_over(part, along.until(last))
            part = _with_captions(part, islice(rows, len(part))) if again else part
            some = True
            yield part.select(columns)
        if chosen is not None and chosen.rest():
            raise _gone(self.selection)
        if not some:
            yield self.empty.select(columns)

    def _base(self, columns: list[str]) -> Iterator[Any]:
        import pyarrow as pa

        stored = [self.names[name] for name in columns]
        if self.whole:
            for batch in manifest.read_manifest(self.shards, stored):
                yield pa.Table.from_batches([batch]).select(stored).rename_columns(columns)
            return
        rows = _index_rows(self.tars, bool(set(CAPTIONS) & set(columns)))
        types = manifest.manifest_schema([name for name, kept in self.names.items() if name != kept])
        for group in chunked(rows, manifest.GROUP):
            yield pa.Table.from_pylist(group, schema=types).select(stored).rename_columns(columns)


class _OverlayValues:
    """The values of an overlay: their names as columns, and what its table calls them."""

    def __init__(self, overlay: Overlay):
        self.overlay, self.place = overlay, filesystem.join(overlay.folder, VALUES)
        self.names, self.types = {}, {}
        for field in list(manifest.read_schema(self.place, "overlay"))[3:]:
            name = field.name
            for prefix in COLUMNS.values():
                name = name.removeprefix(prefix)
            if name not in _OWN or name == field.name == "score":
                self.names[name], self.types[name] = field.name, field.type

    def open(self, columns: Sequence[str]) -> "_SortedJoin":
        """Return its rows, with those of these columns that it has."""
        stored = [kept for name, kept in self.names.items() if name in columns]
        return _SortedJoin(self.place, ["shard", "key", "picture", *stored], "overlay")

    def laid_over(self, table: Any, values: Any) -> Any:
        """Lay some of its rows over a table; LuminaError where they are of other pictures."""
        import pyarrow as pa
        import pyarrow.compute as pc

        at = _find(table, values)
        taken = values.take(pa.array(at, mask=at < 0))
        same = pc.or_kleene(pc.equal(taken["picture"], table["sha256"]), pc.is_null(table["sha256"]))
        if pc.any(pc.invert(same)).as_py():
            raise LuminaError(
                f"overlay {self.overlay.name}@{self.overlay.version} is stale: the shards hold other pictures"
                " than those it was made for; make it again"
            )
        for name, stored in self.names.items():
            if stored in taken.column_names:
                new = taken[stored]
                if name in table.column_names:
                    new = pc.coalesce(new, table[name])
                    table = table.drop_columns([name])
                table = table.append_column(name, new)
        return table


class _SortedJoin:
    """A parquet file in the order of shards that is read beside their own table."""

    def __init__(self, place: str, columns: list[str], kind: str):
        import pyarrow as pa

        types = manifest.read_schema(place, kind)
        self.none = pa.schema([types.field(name) for name in columns]).empty_table()
        batches = manifest.read_batches(place, columns, kind)
        self.parts = (pa.Table.from_batches([batch]).select(columns) for batch in batches)
        self.waiting = self.none

    def until(self, shard: str) -> Any:
        """Return the rows of all shards up to this one that were not taken yet."""
        import pyarrow as pa
        import pyarrow.compute as pc

        taken = [self.none]
        while self.rest():
            count = pc.sum(pc.less_equal(self.waiting["shard"], shard)).as_py()
            taken.append(self.waiting.slice(0, count))
            self.waiting = self.waiting.slice(count)
            if len(self.waiting):
                break
        return pa.concat_tables(taken)

    def rest(self) -> bool:
        """Whether there are rows that were not taken."""
        while not len(self.waiting):
            found = next(self.parts, None)
            if found is None:
                return False
            self.waiting = found
        return True


def _whole_shards(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the same rows in tables that end where a shard does."""
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


def _positions(table: Any, wanted: Any, name: str) -> np.ndarray:
    """Where each row of `wanted` is in `table`; both by shard and key."""
    found = _find(wanted, table)
    if (found < 0).any():
        raise _gone(name)
    return found


def _gone(name: str | None) -> LuminaError:
    return LuminaError(f"{name} selected samples that its shards no longer hold; select again")


def _find(rows: Any, table: Any) -> np.ndarray:
    """Return where the (shard, key) of each row is in `table`, -1 where it is not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [
        pc.binary_join_element_wise(each["shard"], each["key"], "/").cast(pa.large_string())
        for each in (rows, table)
    ]
    if names[0].equals(names[1]):
        return np.arange(len(rows))
    at = pc.index_in(names[0], value_set=names[1].combine_chunks())
    return at.fill_null(-1).to_numpy().astype(np.int64)


def _with_captions(table: Any, rows: Iterable[dict]) -> Any:
    """Put the lengths of captions that overlays have changed into a table, from the rows themselves."""
    import pyarrow as pa

    kinds = [list(lengths_of(row)) for row in rows]
    types = manifest.manifest_schema()
    for name in set(CAPTIONS) & set(table.column_names):
        at = {"languages": 0, "levels": 1, "characters": 2}.get(name)
        lists = [None if at is None else [kind[at] for kind in each] for each in kinds]
        values = pa.array(lists, types.field(name).type)
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def lengths_of(row: dict) -> Iterator[tuple[str, str, int]]:
    """Yield (language, level, characters) of the captions of a row; what is no caption is left out."""
    captions = row.get("captions") if isinstance(row.get("captions"), dict) else {}
    for lang, texts in captions.items():
        for level, text in texts.items() if isinstance(texts, dict) else ():
            if isinstance(text, str):
                yield lang, level, len(text)


def _names_in(tars: Sequence[str]) -> list[str]:
    """The names of the scores in indexes; a tar without one has none."""
    indexed = (tar for tar in tars if filesystem.is_file(index_path(tar)))
    return sorted(
        {name for tar in indexed for entry in iter_index(tar) for name in entry.get("scores") or ()}
    )


def _index_rows(tars: Sequence[str], captions: bool) -> Iterator[dict]:
    """Rows of a manifest from the indexes of shards; the captions of other tools' shards from their rows."""
    for tar in tars:
        for entry in iter_index(tar):
            entry = entry | {"row": entry.get("row") or [0, 0]}
            if captions and "characters" not in entry:
                entry["characters"] = {}
                row = with_captions(read_entry(tar, entry)) if entry["row"][1] or entry.get("text") else {}
                for lang, level, count in lengths_of(row):
                    entry["characters"].setdefault(lang, {})[level] = count
            yield manifest.manifest_row(filesystem.basename(tar), entry)

"""The sample table of shards: sizes, captions and scores of all samples, without reading a tar.

Columns (pyarrow), one row per sample in the order of the shards:

    shard key image sha256 source       as in the manifest; source may be null
    width height                        in pixels, after the EXIF rotation
    languages levels characters tokens  lists with one item per caption; tokens may be null
    score, NAME...                      numbers; those of the newest overlays take precedence over the rows
    phash...                            hashes as text

A selection provides its samples only. Shards without a manifest.parquet are read by their indexes. Shards,
selections and the values of overlays are all sorted by the names of the shards, so they are read in step,
and the memory needed does not grow with the number of samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from lumina_cli.core.curation.sorted_join import (
    OverlayValues,
    SortedJoin,
    align_to_shards,
    find_rows,
    missing_samples,
)
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import with_captions
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.overlays.reader import find_overlays, folder_of_shards, split_source
from lumina_cli.core.shards.overlays.writer import VALUES
from lumina_cli.core.shards.reader import open_shards, read_entry
from lumina_cli.core.shards.selection import TABLE, is_selection, read_samples, selected_shards
from lumina_cli.core.shards.tar import index_path, iter_index

PLACE = ("shard", "key", "image", "sha256")
SIZES = ("width", "height", "source", "notes")
CAPTIONS = ("languages", "levels", "characters", "tokens")
_OWN = (*PLACE, *SIZES, *CAPTIONS, "score")


def open_samples(source: str, captions: bool = False) -> tuple[str, Any]:
    """Return the folder of shards of a SOURCE, and its whole table; columns of captions only if `captions`.

    Raises:
        LuminaError: see `Samples.parts`.
    """
    import pyarrow as pa

    samples = Samples(source)
    names = [name for name in samples.empty.column_names if captions or name not in CAPTIONS]
    return samples.folder, pa.concat_tables(_with_large_strings(part) for part in samples.parts(names))


def _with_large_strings(table: Any) -> Any:
    """Cast texts to large_string: those of a hundred million samples exceed the 2 GiB of a string column."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


class Samples:
    """The sample table of a SOURCE of shards, read in parts.

    source     folder of shards, a tar, or a selection, possibly with "?overlay=NAME"
    selection  folder of the selection, or None
    folder     folder of the shards
    whole      whether the shards have a manifest for the whole folder
    rewritten  whether an overlay replaces captions, so that their lengths must be read from the rows
    names      column -> column of the manifest
    values     tables of overlays that provide columns
    empty      the table without rows: its columns and their types

    Raises:
        LuminaError: if the shards or the selection cannot be read.
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
            OverlayValues(each, _OWN)
            for each in overlays
            if filesystem.is_file(filesystem.join(each.folder, VALUES))
        ]
        names = manifest.read_score_names(self.shards) if self.whole else _names_in(self.tars)
        self.names = {name: name for name in _OWN}
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
        """Yield tables with these columns, at least one; they end at the end of a shard if they are joined.

        Raises:
            LuminaError: if an overlay belongs to other images than those of the shards, or a selection to
                samples that the shards do not contain.
        """
        columns = list(dict.fromkeys(columns))
        values = [each for each in self.values if each.names.keys() & set(columns)]
        joined = bool(values or self.selection)
        selected = self._open_selection()
        overlays = [(each, each.open(columns)) for each in values]
        reread = self.rewritten and set(CAPTIONS) & set(columns)
        rows = read_samples(self.source) if reread else iter(())
        empty = True
        for part in self._base_parts(columns, values):
            last = part["shard"][-1].as_py() if joined else None
            if selected is not None:
                part = self._select(part, selected.until(last))
            for each, join in overlays:
                part = each.apply(part, join.until(last))
            part = _with_captions(part, islice(rows, len(part))) if reread else part
            empty = False
            yield part.select(columns)
        if selected is not None and selected.has_more():
            raise missing_samples(self.selection)
        if empty:
            yield self.empty.select(columns)

    def _base_parts(self, columns: Sequence[str], values: Sequence[OverlayValues]) -> Iterator[Any]:
        """Yield tables with those of `columns` that are not from overlays, and with the keys of the joins."""
        keys = ("shard", "key", "sha256") if values else ("shard", "key") if self.selection else ()
        base = [name for name in dict.fromkeys([*keys, *columns]) if name in self.names]
        parts = self._base(base or ["key"])
        return align_to_shards(parts) if keys else parts

    def _open_selection(self) -> SortedJoin | None:
        if not self.selection:
            return None
        return SortedJoin(filesystem.join(self.selection, TABLE), ["shard", "key"], "selection")

    def _select(self, part: Any, selected: Any) -> Any:
        """Return the selected rows of a part, in the order of the selection."""
        found = find_rows(selected, part)
        if (found < 0).any():
            raise missing_samples(self.selection)
        return part.take(found)

    def _base(self, columns: list[str]) -> Iterator[Any]:
        """Yield tables with these columns, from the manifest or else from the indexes of the tars."""
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


def _with_captions(table: Any, rows: Iterable[dict]) -> Any:
    """Replace the lengths of captions in a table by those of the rows, whose captions overlays replaced."""
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
    """Yield (language, level, characters) of the captions of a row; malformed captions are skipped."""
    captions = row.get("captions") if isinstance(row.get("captions"), dict) else {}
    for lang, texts in captions.items():
        for level, text in texts.items() if isinstance(texts, dict) else ():
            if isinstance(text, str):
                yield lang, level, len(text)


def _names_in(tars: Sequence[str]) -> list[str]:
    """Return the names of the scores in the indexes of tars; a tar without an index has none."""
    indexed = (tar for tar in tars if filesystem.is_file(index_path(tar)))
    return sorted(
        {name for tar in indexed for entry in iter_index(tar) for name in entry.get("scores") or ()}
    )


def _index_rows(tars: Sequence[str], captions: bool) -> Iterator[dict]:
    """Yield rows of a manifest from the indexes of tars; captions of other tools' shards from their rows."""
    for tar in tars:
        for entry in iter_index(tar):
            entry = entry | {"row": entry.get("row") or [0, 0]}
            if captions and "characters" not in entry:
                entry["characters"] = {}
                row = with_captions(read_entry(tar, entry)) if entry["row"][1] or entry.get("text") else {}
                for lang, level, count in lengths_of(row):
                    entry["characters"].setdefault(lang, {})[level] = count
            yield manifest.manifest_row(filesystem.basename(tar), entry)

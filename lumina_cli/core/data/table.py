"""What is known of every sample of shards as one table, without opening a tar: sizes, captions, scores.

Columns, a row a sample in the order of the shards (pyarrow):

    shard key image sha256 source       as in the manifest; source may be null
    width height                        as seen
    languages levels characters tokens  lists, an item a caption; tokens may be null
    score, NAME...                      numbers, from the rows and from the newest overlays, which win
    phash...                            hashes as text

A selection gives its samples only. Shards that have no manifest.parquet are read by their indexes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lumina_cli.core.data.folders import with_captions
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats import manifest, places
from lumina_cli.core.formats.overlays import Overlay, find_overlays, folder_of_shards, split_source
from lumina_cli.core.formats.overlaywriter import COLUMNS, VALUES
from lumina_cli.core.formats.selection import is_selection, read_samples, read_table, selected_shards
from lumina_cli.core.formats.shardreader import iter_index, open_shards, read_entry

PLACE = ("shard", "key", "image", "sha256")
SIZES = ("width", "height", "source", "notes")
CAPTIONS = ("languages", "levels", "characters", "tokens")


def samples_of(source: str, captions: bool = False, scores: bool = True) -> tuple[str, Any]:
    """Return (the folder of shards, the table of a SOURCE); without `captions`, none of their columns.

    LuminaError where an overlay is about other pictures than the shards hold now.
    """
    bare, wanted = split_source(source)
    shards = selected_shards(bare) if is_selection(bare) else bare
    table = _base(shards, captions)
    if is_selection(bare):
        chosen = _roomy(read_table(bare, ["shard", "key"]))
        table = table.take(_positions(table, chosen, bare))
    folder = folder_of_shards(shards)
    if captions and any("captions" in each.info.get("fields", ()) for each in find_overlays(folder, wanted)):
        table = _with_captions(table, source)
    for overlay in find_overlays(folder, wanted) if scores else ():
        if places.is_file(places.join(overlay.folder, VALUES)):
            table = _with_values(table, overlay)
    return folder, table


def _base(shards: str, captions: bool) -> Any:
    import pyarrow as pa

    tars = open_shards(shards)
    columns = [*PLACE, *SIZES, *(CAPTIONS if captions else ()), "score"]
    whole = not shards.endswith(".tar") and places.is_file(places.join(shards, manifest.NAME))
    if whole:
        names = manifest.score_names(shards)
        columns += [manifest.SCORE + name for name in names]
        batches = list(manifest.read_manifest(shards, columns))
        table = (
            pa.Table.from_batches(batches)
            if batches
            else manifest.schema(names).empty_table().select(columns)
        )
    else:
        rows = list(_index_rows(tars))
        names = sorted({name for row in rows for name in row if name.startswith(manifest.SCORE)})
        schema = manifest.schema([name.removeprefix(manifest.SCORE) for name in names])
        table = pa.Table.from_pylist(rows, schema=schema).select([*columns, *names])
    names = [name.removeprefix(manifest.SCORE) for name in table.column_names]
    return _roomy(table.rename_columns(names))


def _roomy(table: Any) -> Any:
    """A table whose texts may be more than 2 GiB a column, which those of a hundred million samples are."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _with_captions(table: Any, source: str) -> Any:
    """Put the lengths of captions that overlays have changed into a table, from the rows themselves."""
    import pyarrow as pa

    kinds = [list(lengths_of(row)) for row in read_samples(source)]
    whole = {"languages": 0, "levels": 1, "characters": 2}
    for name, at in whole.items():
        values = pa.array([[kind[at] for kind in each] for each in kinds], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, values)
    empty = pa.nulls(len(table), table.schema.field("tokens").type)
    return table.set_column(table.column_names.index("tokens"), "tokens", empty)


def lengths_of(row: dict) -> Iterator[tuple[str, str, int]]:
    """Yield (language, level, characters) of the captions of a row; what is no caption is left out."""
    captions = row.get("captions") if isinstance(row.get("captions"), dict) else {}
    for lang, texts in captions.items():
        for level, text in texts.items() if isinstance(texts, dict) else ():
            if isinstance(text, str):
                yield lang, level, len(text)


def _index_rows(tars: Sequence[str]) -> Iterator[dict]:
    """Rows of a manifest from the indexes of shards; of other tools' shards from their rows."""
    for tar in tars:
        for entry in iter_index(tar):
            entry = entry | {"row": entry.get("row") or [0, 0]}
            if "characters" not in entry:
                entry["characters"] = {}
                row = with_captions(read_entry(tar, entry)) if entry["row"][1] or entry.get("text") else {}
                for lang, level, count in lengths_of(row):
                    entry["characters"].setdefault(lang, {})[level] = count
            yield manifest.manifest_row(places.name_of(tar), entry)


def _positions(table: Any, wanted: Any, name: str) -> np.ndarray:
    """Where each row of `wanted` is in `table`; both by shard and key, in the same order of shards."""
    found = _find(wanted, table)
    if (found < 0).any():
        raise LuminaError(f"{name} selected samples that its shards no longer hold; select again")
    return found


def _find(rows: Any, table: Any) -> np.ndarray:
    """Return where the (shard, key) of each row is in `table`, -1 where it is not: shard by shard."""
    import pyarrow.compute as pc

    found = np.full(len(rows), -1, np.int64)
    runs = dict(_runs(table))
    for shard, (start, stop) in _runs(rows):
        if shard in runs:
            first, last = runs[shard]
            keys = table["key"].slice(first, last - first).combine_chunks()
            at = pc.index_in(rows["key"].slice(start, stop - start), value_set=keys)
            at = at.fill_null(-1).to_numpy(zero_copy_only=False)
            found[start:stop] = np.where(at < 0, -1, at + first)
    return found


def _runs(table: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (shard, (first row, row after the last)) of a table whose rows are in the order of shards."""
    codes = table["shard"].combine_chunks().dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    edges = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield codes.dictionary[int(numbers[start])].as_py(), (start, stop)


def _with_values(table: Any, overlay: Overlay) -> Any:
    """Lay the values of an overlay over the columns of a table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as parquet

    with places.open_file(places.join(overlay.folder, VALUES)) as file:
        values = _roomy(parquet.read_table(file))
    at = _find(table, values)
    taken = values.take(pa.array(at, mask=at < 0))
    same = pc.or_kleene(pc.equal(taken["picture"], table["sha256"]), pc.is_null(table["sha256"]))
    if pc.any(pc.invert(same)).as_py():
        raise LuminaError(
            f"overlay {overlay.name}@{overlay.version} is stale: the shards hold other pictures than those "
            "it was made for; make it again"
        )
    for column in values.column_names[3:]:
        name = column
        for prefix in COLUMNS.values():
            name = name.removeprefix(prefix)
        new = taken[column]
        if name in table.column_names and name not in (*PLACE, *SIZES, *CAPTIONS):
            new = pc.coalesce(new, table[name])
            table = table.drop_columns([name])
        if name not in table.column_names:
            table = table.append_column(name, new)
    return table

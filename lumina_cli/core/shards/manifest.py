"""manifest.parquet: the indexes of all shards as one table, one row per sample, for filters and statistics.

    shard, key, image                        name of the tar, key, and member of the image
    offset, length, row_offset, row_length   spans of the image and of the row in the tar, in bytes
    sha256                                   hash of the image's bytes
    width, height                            in pixels, after rotation
    notes                                    list of conversions (NOTES in images/ingest.py)
    languages, levels, characters, tokens    parallel lists, one item per caption; tokens may be null
    score, score_NAME...                     float64; null if a row does not have the score
    source, origin                           the source of the rows; the file that the image is from

The same shards give the same bytes with the same version of pyarrow. Memory is bounded by one row group.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.io.parallel.process_pool import map_in_order
from lumina_cli.core.shards.tar import index_path

NAME = "manifest.parquet"
GROUP = 1 << 16  # rows per row group
SOME = 1 << 10  # rows per table in `write_row_table`
MANY = 32  # fewer shards are not worth starting processes to read their indexes
SCORE = "score_"
_SAME = ("key", "image", "offset", "length", "sha256", "width", "height", "score")


def manifest_schema(scores: Sequence[str] = ()) -> Any:
    """Return the pyarrow schema of a manifest with these named scores."""
    import pyarrow as pa

    text, whole, wide, texts = pa.string(), pa.int32(), pa.int64(), pa.list_(pa.string())
    columns = {"shard": text, "key": text, "image": text, "offset": wide, "length": wide}
    columns |= {"row_offset": wide, "row_length": wide, "sha256": text, "width": whole, "height": whole}
    columns |= {"notes": texts, "languages": texts, "levels": texts, "characters": pa.list_(whole)}
    columns |= {"tokens": pa.list_(whole), "score": pa.float64()}
    columns |= {SCORE + name: pa.float64() for name in sorted(scores)}
    return pa.schema(list((columns | {"source": text, "origin": text}).items()))


def manifest_row(shard: str, entry: dict) -> dict:
    """Return the manifest row for a line of an index, with a column for each of its scores."""
    columns = manifest_columns(shard, [entry], tuple(entry.get("scores") or ()))
    return {name: values[0] for name, values in columns.items()}


def manifest_columns(shard: str, entries: list[dict], scores: Sequence[str]) -> dict[str, list]:
    """Return the manifest columns, {name: values}, for the lines of an index."""
    columns = {name: [entry.get(name) for entry in entries] for name in _SAME}
    columns |= {name: [_storable(entry.get(name)) for entry in entries] for name in ("source", "origin")}
    columns |= {"shard": [shard] * len(entries), "notes": [entry.get("notes") or [] for entry in entries]}
    columns["row_offset"], columns["row_length"] = (
        [entry["row"][part] for entry in entries] for part in (0, 1)
    )
    for name in scores:
        columns[SCORE + name] = [(entry.get("scores") or {}).get(name) for entry in entries]
    texts = [_captions(entry) for entry in entries]
    for part, name in enumerate(("languages", "levels", "characters", "tokens")):
        columns[name] = [each[part] for each in texts]
    return columns


def _captions(entry: dict) -> tuple[list, list, list, list | None]:
    """Return parallel lists of the languages, levels, characters and tokens of a sample's captions."""
    characters, tokens = entry.get("characters") or {}, entry.get("tokens")
    languages, levels, lengths = [], [], []
    for language, found in characters.items():
        languages += [_storable(language)] * len(found)
        levels += map(_storable, found)
        lengths += found.values()
    if not tokens:
        return languages, levels, lengths, None
    counted = (
        tokens.get(language, {}).get(level) for language in characters for level in characters[language]
    )
    return languages, levels, lengths, list(counted)


def _storable(text: str | None) -> str | None:
    """Return text that UTF-8 can encode: a file name may hold other bytes, which become escapes."""
    if not text or text.isascii():
        return text or None
    return text.encode("utf-8", "backslashreplace").decode()


def write_manifest(place: str, tars: Sequence[str], scores: Sequence[str], workers: int = 0) -> int:
    """Write the manifest of shards to `place` from their indexes; return the number of samples.

    The file is the same for any number of `workers`, the processes that read the indexes.
    """
    jobs = [(tar, tuple(sorted(scores))) for tar in tars]
    many = workers > 1 and len(jobs) > MANY
    return write_tables(
        place,
        map_in_order(_index_table, jobs, workers) if many else map(_index_table, jobs),
        manifest_schema(scores),
    )


def _index_table(job: tuple[str, tuple[str, ...]]) -> Any:
    """Return the manifest rows of one tar as a pyarrow table."""
    import pyarrow as pa

    tar, scores = job
    entries = [json.loads(line) for line in filesystem.read_file(index_path(tar)).splitlines()]
    return pa.table(
        manifest_columns(filesystem.basename(tar), entries, scores), schema=manifest_schema(scores)
    )


def write_row_table(place: str, rows: Iterable[dict], columns: Any) -> int:
    """Write rows as a parquet file with this schema, whole or not at all; return their number."""
    return write_tables(place, (_table(group, columns) for group in chunked(rows, SOME)), columns)


def _table(rows: Iterable[dict], columns: Any) -> Any:
    import pyarrow as pa

    lists: dict[str, list] = {name: [] for name in columns.names}
    for row in rows:
        for name, values in lists.items():
            values.append(row.get(name))
    return pa.table(lists, schema=columns)


def write_tables(place: str, parts: Iterable[Any], columns: Any) -> int:
    """Write tables as one parquet file, whole or not at all; return the number of rows.

    Row groups have a fixed size that does not depend on the tables, so the bytes do not depend on how the
    rows were split between them.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    total, waiting = 0, columns.empty_table()
    with (
        filesystem.open_for_writing(place) as file,
        parquet.ParquetWriter(file, columns, compression="zstd") as writer,
    ):
        for part in chain(parts, [None]):
            if part is not None:
                waiting = pa.concat_tables([waiting, part])
            while len(waiting) >= GROUP or (part is None and len(waiting)):
                with disk_errors(place):
                    writer.write_table(waiting.slice(0, GROUP).combine_chunks())
                total += min(len(waiting), GROUP)
                waiting = waiting.slice(GROUP)
    return total


def read_manifest(folder: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the pyarrow record batches of a folder's manifest, optionally of some columns only.

    Raises:
        LuminaError: if the folder does not have a manifest.
    """
    place = filesystem.join(folder, NAME)
    if not filesystem.is_file(place):
        raise LuminaError(f"{folder} does not have a {NAME}; create it with `lumina shard SOURCE {folder}`")
    return read_batches(place, columns, "manifest")


def read_batches(place: str, columns: Sequence[str] | None, kind: str) -> Iterator[Any]:
    """Yield the pyarrow record batches of a parquet file; `kind` names its content in errors.

    Raises:
        LuminaError: if it is not a parquet file.
    """
    with _parquet(place, kind) as table:
        yield from table.iter_batches(GROUP, columns=list(columns) if columns else None)


def read_schema(place: str, kind: str) -> Any:
    """Return the pyarrow schema of a parquet file; `kind` names its content in errors.

    Raises:
        LuminaError: if it is not a parquet file.
    """
    with _parquet(place, kind) as table:
        return table.schema_arrow


@contextmanager
def _parquet(place: str, kind: str) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with filesystem.open_file(place) as file:
        try:
            # with pre_buffer, pyarrow keeps all columns that it has read until the file is closed
            yield parquet.ParquetFile(file, pre_buffer=False)
        except (OSError, ValueError) as error:  # pyarrow's errors derive from one of these
            raise LuminaError(f"{place} is not a {kind} ({' '.join(str(error).split())})") from error


def read_score_names(folder: str) -> list[str]:
    """Return the names of the scores in a folder's manifest, without `score` itself."""
    names = read_schema(filesystem.join(folder, NAME), "manifest").names
    return [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]

"""manifest.parquet: the indexes of all shards as one table, a row a sample, for filters and statistics.

    shard key image offset length row_offset row_length sha256     where the sample is, and its picture's hash
    width height notes                                             as seen; what the policy of pictures does
    languages levels characters tokens                             lists, an item a caption; tokens or null
    score score_NAME...                                            null where a row has no such score
    source origin                                                  what the rows were read from; the picture

The same shards give the same bytes with the same pyarrow. Memory is bounded: one group of rows at a time.
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
from lumina_cli.core.io.process_pool import map_in_order
from lumina_cli.core.shards.reader import index_path

NAME = "manifest.parquet"
GROUP = 1 << 16  # samples that are compressed together
SOME = 1 << 10  # rows that become a table together
MANY = 32  # shards from which on other processes are worth starting for their indexes
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
    """Return the row of the manifest that a line of an index makes; its scores are columns, too."""
    columns = manifest_columns(shard, [entry], tuple(entry.get("scores") or ()))
    return {name: values[0] for name, values in columns.items()}


def manifest_columns(shard: str, entries: list[dict], scores: Sequence[str]) -> dict[str, list]:
    """Return the columns of the manifest that the lines of an index make."""
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
    """Return languages, levels, characters and tokens of a sample, an item a caption."""
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
    """A file name may hold what UTF-8 cannot; the table then shows it with backslashes."""
    if not text or text.isascii():
        return text or None
    return text.encode("utf-8", "backslashreplace").decode()


def write_manifest(place: str, tars: Sequence[str], scores: Sequence[str], workers: int = 0) -> int:
    """Write the manifest of shards at `place` from their indexes; return how many samples it has.

    The file is the same for any number of `workers`, processes that read the indexes.
    """
    jobs = [(tar, tuple(sorted(scores))) for tar in tars]
    many = workers > 1 and len(jobs) > MANY
    return write_tables(
        place,
        map_in_order(_index_table, jobs, workers) if many else map(_index_table, jobs),
        manifest_schema(scores),
    )


def _index_table(job: tuple[str, tuple[str, ...]]) -> Any:
    """Return the samples of one tar as a table."""
    import pyarrow as pa

    tar, scores = job
    entries = [json.loads(line) for line in filesystem.read_file(index_path(tar)).splitlines()]
    return pa.table(
        manifest_columns(filesystem.basename(tar), entries, scores), schema=manifest_schema(scores)
    )


def write_row_table(place: str, rows: Iterable[dict], columns: Any) -> int:
    """Write rows as a parquet file with these columns, whole or not at all; return how many."""
    return write_tables(place, (_table(group, columns) for group in chunked(rows, SOME)), columns)


def _table(rows: Iterable[dict], columns: Any) -> Any:
    import pyarrow as pa

    lists: dict[str, list] = {name: [] for name in columns.names}
    for row in rows:
        for name, values in lists.items():
            values.append(row.get(name))
    return pa.table(lists, schema=columns)


def write_tables(place: str, parts: Iterable[Any], columns: Any) -> int:
    """Write tables as one parquet file, whole or not at all; return how many rows.

    Rows are held in groups whose size does not depend on that of the tables.
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
    """Yield the record batches (pyarrow) of a folder's manifest, only these columns of it if given."""
    place = filesystem.join(folder, NAME)
    if not filesystem.is_file(place):
        raise LuminaError(f"{folder} has no {NAME}; `lumina shard SOURCE {folder}` writes one")
    return read_batches(place, columns, "manifest")


def read_batches(place: str, columns: Sequence[str] | None, kind: str) -> Iterator[Any]:
    """Yield the record batches (pyarrow) of a parquet file; LuminaError where it is no `kind`."""
    with _parquet(place, kind) as table:
        yield from table.iter_batches(GROUP, columns=list(columns) if columns else None)


def read_schema(place: str, kind: str) -> Any:
    """Return the pyarrow schema of a parquet file; LuminaError where it is no `kind`."""
    with _parquet(place, kind) as table:
        return table.schema_arrow


@contextmanager
def _parquet(place: str, kind: str) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with filesystem.open_file(place) as file:
        try:
            # with its buffer, pyarrow keeps every column that was read until the end
            yield parquet.ParquetFile(file, pre_buffer=False)
        except (OSError, ValueError) as error:  # pyarrow's own errors are both
            raise LuminaError(f"{place} is no {kind} ({' '.join(str(error).split())})") from error


def read_score_names(folder: str) -> list[str]:
    """Return the names of the scores that a folder's manifest has, without `score` itself."""
    names = read_schema(filesystem.join(folder, NAME), "manifest").names
    return [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]

"""A selection: which samples of shards go on to the next stage, without a copy of any picture.

    DEST/selection.parquet   shard, key, image, sha256: a row a sample, in the order of the shards; and
                             "value", what it was chosen by
    DEST/select.json         written last: the shards and the source that was selected from (relative to
                             DEST where both are on this machine), settings, and what each step left

A folder with a select.json is a SOURCE like any other: its rows are those of the shards.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.shards.manifest import read_batches, write_tables
from lumina_cli.core.shards.overlays.reader import (
    WORD,
    folder_of_shards,
    open_joiner,
    read_json,
    split_source,
)
from lumina_cli.core.shards.reader import SELECTED, iter_index, read_entry, read_shards

TABLE, DONE = "selection.parquet", SELECTED


def is_selection(source: str | os.PathLike) -> bool:
    """Whether a SOURCE is a folder that holds a selection."""
    return filesystem.is_file(filesystem.join(split_source(source)[0], DONE))


def check_dest(dest: str, source: str, settings: dict, force: bool = False) -> None:
    """Raise UsageError where a selection cannot be written to `dest`, or only with `force`.

    That is where `dest` holds shards, is the source, or holds a selection by other settings or of another
    source.
    """
    dest, bare = filesystem.to_text(dest), split_source(source)[0]
    if _real(dest) == _real(bare) or filesystem.is_file(filesystem.join(dest, "shards.json")):
        held = "a selection that is the source" if is_selection(dest) else "shards"
        raise UsageError(f"{dest} holds {held}; give the selection a folder of its own")
    place = filesystem.join(dest, DONE)
    if force or not filesystem.is_file(place):
        return
    info = read_json(place) or {}
    if info.get("source") != _from(dest, source) or info.get("settings") != json.loads(json.dumps(settings)):
        raise UsageError(
            f"{dest} already holds a selection, by other settings or of another source; --force replaces it"
        )


def _real(place: str) -> str:
    return place.rstrip("/") if filesystem.is_url(place) else os.path.realpath(place)


def write_selection(dest: str, shards: str, source: str, parts: Iterable[Any], info: dict) -> dict:
    """Write a selection of `shards` from the parts of its table (pyarrow); return what select.json says.

    An earlier selection stays as it is where the parts cannot be worked out.
    """
    import pyarrow as pa

    dest, text = filesystem.to_text(dest), pa.string()
    filesystem.make_dir(dest)
    columns = dict.fromkeys(("shard", "key", "image", "sha256"), text) | {"value": pa.float64()}
    count = _write_table(dest, parts, pa.schema(list(columns.items())))
    info = {"shards": _from(dest, shards), "source": _from(dest, source), "samples": count} | info
    filesystem.write_file(
        filesystem.join(dest, DONE), json.dumps(info, ensure_ascii=False, indent=1).encode() + b"\n"
    )
    return info


def _write_table(dest: str, parts: Iterable[Any], columns: Any) -> int:
    """Write the table of a selection aside, then put it in the place of an earlier one, which ends there."""
    place = filesystem.join(dest, TABLE)
    if not filesystem.is_url(dest):
        with atomic_write(place) as aside:
            count = write_tables(str(aside), parts, columns)
            filesystem.remove(dest, [DONE])  # or a kill right now would leave it with another table
        return count

    def last() -> Iterator[Any]:  # a store takes the file once it is whole
        yield from parts
        filesystem.remove(dest, [DONE])

    return write_tables(place, last(), columns)


def _from(dest: str, place: str) -> str:
    """A place as select.json names it: as seen from the selection, where both are on this machine."""
    place = filesystem.to_text(place)
    return place if filesystem.is_url(place) or filesystem.is_url(dest) else os.path.relpath(place, dest)


def read_selection_info(folder: str) -> dict:
    """Return the select.json of a selection; LuminaError where there is none."""
    info = read_json(filesystem.join(folder, DONE))
    if not info or not isinstance(info.get("shards"), str):
        raise LuminaError(f"{folder} holds no selection; `lumina shard select SHARDS {folder}` writes one")
    return info


def selected_shards(folder: str) -> str:
    """Return the shards that a selection is of."""
    return _seen_from(folder, read_selection_info(folder)["shards"])


def _seen_from(folder: str, where: str) -> str:
    """The place that select.json of a folder names so."""
    if filesystem.is_url(where) or os.path.isabs(where) or filesystem.is_url(folder):
        return where
    return os.path.normpath(os.path.join(folder, where))


def list_selections(source: str) -> list[tuple[str, dict]]:
    """Return (folder, its select.json) of a selection and of those that it is from, the first one first.

    Those that are gone by now are left out; of shards there are none.
    """
    found: list[tuple[str, dict]] = []
    while True:
        folder = split_source(source)[0]
        if not is_selection(folder) or folder in [known for known, _ in found]:
            return found[::-1]
        found.append((folder, read_selection_info(folder)))
        source = found[-1][1].get("source")
        if not isinstance(source, str):
            return found[::-1]
        source = _seen_from(folder, source)


def resolve_shards(source: str | os.PathLike) -> str:
    """Return the folder of shards that a folder, a tar or a selection of it stands for."""
    bare = split_source(source)[0]
    return folder_of_shards(selected_shards(bare) if is_selection(bare) else bare)


def selected_keys(source: str | os.PathLike) -> dict[str, frozenset[str]] | None:
    """Return the keys of a selection by the name of their shard; None for shards, of which all are meant."""
    bare = split_source(source)[0]
    if not is_selection(bare):
        return None
    groups = groupby(_chosen(bare), key=lambda row: row[0])
    return {shard: frozenset(key for _, key, _ in rows) for shard, rows in groups}


def selected_entries(source: str) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """Yield (tar, its whole index, the lines of it that are selected) of each shard that a selection needs.

    LuminaError where a selected sample is gone, or its picture has changed.
    """
    folder, _ = split_source(source)
    shards = selected_shards(folder)
    for name, group in groupby(_chosen(folder), key=lambda row: row[0]):
        if not name or "/" in name or not name.endswith(".tar"):
            raise LuminaError(f"{folder} names no shard by {name!r}; select again")
        tar = filesystem.join(shards, name)
        entries = list(iter_index(tar))
        known = {entry["key"]: entry for entry in entries}
        chosen = []
        for _, key, digest in group:
            entry = known.get(key)
            if entry is None or (digest and entry.get("sha256") not in (None, digest)):
                raise LuminaError(f"{tar} has changed: {key} is not what {folder} selected; select again")
            chosen.append(entry)
        yield tar, entries, chosen


def _chosen(folder: str) -> Iterator[tuple[str, str, str | None]]:
    for batch in read_batches(filesystem.join(folder, TABLE), ["shard", "key", "sha256"], "selection"):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def read_samples(source: str | os.PathLike) -> Iterator[dict]:
    """Yield the rows of shards or of a selection of some."""
    return read_selection(source) if is_selection(source) else read_shards(source)


def read_selection(source: str | os.PathLike) -> Iterator[dict]:
    """Yield the rows of a selection, with overlays like those of its shards; see `formats.overlays`."""
    source = filesystem.to_text(source)
    shards = selected_shards(split_source(source)[0])
    words = source.rpartition(WORD)
    _, joiner = open_joiner(f"{shards}{WORD}{words[2]}" if words[1] else shards)
    for tar, entries, chosen in selected_entries(source):
        add = joiner.open(tar, entries)
        for entry in chosen:
            yield add(entry, read_entry(tar, entry))

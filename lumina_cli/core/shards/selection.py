"""A selection: the samples of shards that the next stage uses, without a copy of any image.

    DEST/selection.parquet   one row per sample, in the order of the shards: shard, key, image, sha256, and
                             "value", the number it was ranked by
    DEST/select.json         shards, source (both relative to DEST if local), settings, samples, and the
                             number of samples after each step; written last

A folder with a select.json is a SOURCE like any other; its rows are those of the shards. The sha256 of each
sample lets `selected_entries` notice that the shards have changed.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.allowed import refuse_store
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.shards.manifest import read_batches, write_tables
from lumina_cli.core.shards.overlays.joiner import open_joiner
from lumina_cli.core.shards.overlays.reader import (
    WORD,
    folder_of_shards,
    read_json,
    split_source,
)
from lumina_cli.core.shards.reader import SELECTED, read_entry, read_shards
from lumina_cli.core.shards.tar import iter_index

TABLE, DONE = "selection.parquet", SELECTED


def is_selection(source: str | os.PathLike) -> bool:
    """Whether a SOURCE is a folder that holds a selection."""
    return filesystem.is_file(filesystem.join(split_source(source)[0], DONE))


def check_dest(dest: str, source: str, settings: dict, force: bool = False) -> None:
    """Check that a selection can be written to `dest`.

    Raises:
        UsageError: if `dest` holds shards, is the source, or, without `force`, holds a selection of another
            source or with other settings.
    """
    dest, bare = filesystem.to_text(dest), split_source(source)[0]
    if _real_path(dest) == _real_path(bare) or filesystem.is_file(filesystem.join(dest, "shards.json")):
        held = "the selection that is the source" if is_selection(dest) else "shards"
        raise UsageError(f"{dest} holds {held}; write the selection to another folder")
    place = filesystem.join(dest, DONE)
    if force or not filesystem.is_file(place):
        return
    info = read_json(place) or {}
    same = info.get("source") == _relative_place(dest, source)
    if not same or info.get("settings") != json.loads(json.dumps(settings)):
        raise UsageError(
            f"{dest} holds a selection with different settings or another source; use --force to replace it"
        )


def _real_path(place: str) -> str:
    return place.rstrip("/") if filesystem.is_url(place) else os.path.realpath(place)


def write_selection(dest: str, shards: str, source: str, parts: Iterable[Any], info: dict) -> dict:
    """Write a selection of `shards`; return the content of select.json.

        parts   pyarrow tables, the parts of selection.parquet
        info    further fields of select.json

    If an error occurs while the parts are computed, an earlier selection in `dest` stays intact.
    """
    import pyarrow as pa

    dest, text = filesystem.to_text(dest), pa.string()
    filesystem.make_dir(dest)
    columns = dict.fromkeys(("shard", "key", "image", "sha256"), text) | {"value": pa.float64()}
    count = _write_table(dest, parts, pa.schema(list(columns.items())))
    places = {"shards": _relative_place(dest, shards), "source": _relative_place(dest, source)}
    info = places | {"samples": count} | info
    filesystem.write_file(
        filesystem.join(dest, DONE), json.dumps(info, ensure_ascii=False, indent=1).encode() + b"\n"
    )
    return info


def _write_table(dest: str, parts: Iterable[Any], columns: Any) -> int:
    """Write selection.parquet under a temporary name, then invalidate and replace an earlier selection."""
    place = filesystem.join(dest, TABLE)
    if not filesystem.is_url(dest):
        with atomic_write(place) as aside:
            count = write_tables(str(aside), parts, columns)
            # before the rename: a kill between the two must not leave select.json with another table
            filesystem.remove(dest, [DONE])
        return count

    # The upload becomes visible only when it completes, so the old select.json is deleted just before that.
    def last() -> Iterator[Any]:
        yield from parts
        filesystem.remove(dest, [DONE])

    return write_tables(place, last(), columns)


def _relative_place(dest: str, place: str) -> str:
    """Return a location as select.json stores it: relative to the selection if both are local."""
    place = filesystem.to_text(place)
    return place if filesystem.is_url(place) or filesystem.is_url(dest) else os.path.relpath(place, dest)


def read_selection_info(folder: str) -> dict:
    """Return the content of select.json.

    Raises:
        LuminaError: if the folder does not hold a selection.
    """
    info = read_json(filesystem.join(folder, DONE))
    if not info or not isinstance(info.get("shards"), str):
        raise LuminaError(
            f"{folder} does not hold a selection; create it with `lumina shard select SHARDS {folder}`"
        )
    return info


def selected_shards(folder: str) -> str:
    """Return the shards that a selection refers to."""
    return _resolve_place(folder, read_selection_info(folder)["shards"])


def _resolve_place(folder: str, stored: str) -> str:
    """Return the location for one that select.json in `folder` stores (see `_relative_place`).

    Raises:
        LuminaError: if select.json, which may come from elsewhere, names a location that is not a store.
    """
    if not stored.startswith(f"{folder}/") and (why := refuse_store(stored)):
        raise LuminaError(f"{filesystem.join(folder, DONE)} names {stored}: {why}")
    if filesystem.is_url(stored) or os.path.isabs(stored) or filesystem.is_url(folder):
        return stored
    return os.path.normpath(os.path.join(folder, stored))


def list_selections(source: str) -> list[tuple[str, dict]]:
    """Return (folder, content of select.json) of a selection and of its ancestors, the oldest first.

    Ancestors that no longer exist are left out. For shards the list is empty.
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
        source = _resolve_place(folder, source)


def resolve_shards(source: str | os.PathLike) -> str:
    """Return the folder of shards that a folder, a tar or a selection refers to."""
    bare = split_source(source)[0]
    return folder_of_shards(selected_shards(bare) if is_selection(bare) else bare)


def selected_keys(source: str | os.PathLike) -> dict[str, frozenset[str]] | None:
    """Return {shard name: keys} of a selection; None for shards, which means all keys."""
    bare = split_source(source)[0]
    if not is_selection(bare):
        return None
    groups = groupby(_read_rows(bare), key=lambda row: row[0])
    return {shard: frozenset(key for _, key, _ in rows) for shard, rows in groups}


def selected_entries(source: str) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """Yield (tar, its whole index, the selected lines of it) for each shard that a selection uses.

    Raises:
        LuminaError: if a selected sample is missing, or its image has changed.
    """
    folder, _ = split_source(source)
    shards = selected_shards(folder)
    for name, group in groupby(_read_rows(folder), key=lambda row: row[0]):
        if not name or "/" in name or not name.endswith(".tar"):
            raise LuminaError(f"{folder} names {name!r}, which is not a shard; rerun `lumina shard select`")
        tar = filesystem.join(shards, name)
        entries = list(iter_index(tar))
        known = {entry["key"]: entry for entry in entries}
        chosen = []
        for _, key, digest in group:
            entry = known.get(key)
            if entry is None or (digest and entry.get("sha256") not in (None, digest)):
                raise LuminaError(
                    f"{tar} has changed: {key} is not what {folder} selected; rerun `lumina shard select`"
                )
            chosen.append(entry)
        yield tar, entries, chosen


def _read_rows(folder: str) -> Iterator[tuple[str, str, str | None]]:
    for batch in read_batches(filesystem.join(folder, TABLE), ["shard", "key", "sha256"], "selection"):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def read_samples(source: str | os.PathLike) -> Iterator[dict]:
    """Yield the rows of shards or of a selection."""
    return read_selection(source) if is_selection(source) else read_shards(source)


def read_selection(source: str | os.PathLike) -> Iterator[dict]:
    """Yield the rows of a selection, with the same overlays as its shards (shards/overlays/reader.py)."""
    source = filesystem.to_text(source)
    folder, wanted = split_source(source)
    shards = selected_shards(folder)
    _, joiner = open_joiner(shards if wanted is None else f"{shards}{WORD}{','.join(wanted)}")
    for tar, entries, chosen in selected_entries(source):
        add = joiner.open(tar, entries)
        for entry in chosen:
            yield add(entry, read_entry(tar, entry))

"""Shards: plain webdataset tars of pictures and their rows, with an index beside each.

    000000.tar           USTAR; for each sample {key}.jpg|png|webp..., then {key}.json; {key}.depth.png and
                         {key}.masks.png where the row has a true depth and masks (images/io.py)
    000000.index.jsonl   a line per sample: key, image (member name), offset, length and sha256 of its bytes,
                         width and height as it is seen, row [offset, length] and row_sha256 of the JSON, the
                         spans of depth and masks, characters and tokens {language: {level: n}}, score, scores
                         {name: number}, notes (images/ingest.py), source, origin, rejected_captions {code:
                         n}; only what there is
    manifest.parquet     all indexes as one table (shards/manifest.py)
    shards.json          written last: totals, settings, and of each tar [name, samples, bytes, sha256 and
                         bytes of its index]; a folder without it is unfinished
                         "upstream": [n, digest] of rows that were left out before they came here
    rejects.jsonl        rows that were not taken: row (its number in the input), key, image, code, reason,
                         and "upstream" (true) where it was left out before it came here
    journal/             only while the folder is unfinished (shards/journal.py)

The same rows give the same bytes on every machine. A folder may be any URL that fsspec knows.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.verify import verify_overlays
from lumina_cli.core.shards.reader import index_path, open_shards, read_entry, read_index, read_totals
from lumina_cli.core.shards.selection import is_selection, resolve_shards, selected_entries, selected_keys
from lumina_cli.core.shards.tar import read_span


def describe_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, bytes, smallest and largest picture, whether it has an index.

    Of a selection those of its shards that it needs, with "selected", how many of their samples it names.
    """
    tars, chosen = _tars_of(path)
    for tar in tars:
        entries = read_index(tar)
        sizes = sorted((entry["width"], entry["height"]) for entry in entries if entry.get("width"))
        row = {"shard": tar, "samples": len(entries), "bytes": filesystem.file_size(tar)}
        if chosen is not None:
            row["selected"] = len(chosen[filesystem.basename(tar)])
        if sizes:
            row |= {"smallest": "x".join(map(str, sizes[0])), "largest": "x".join(map(str, sizes[-1]))}
        yield row | {"index": filesystem.is_file(index_path(tar))}


def _tars_of(path: str | Path) -> tuple[list[str], dict[str, frozenset[str]] | None]:
    """Return the tars that a folder, a tar or a selection stands for, and the keys that a selection names."""
    if not is_selection(path):
        return open_shards(path), None
    chosen = selected_keys(path) or {}
    return [tar for tar in open_shards(resolve_shards(path)) if filesystem.basename(tar) in chosen], chosen


def verify_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, ok, and under "problem" what is wrong with it, or None.

    Every picture and every row is compared with the hash in the index, and the index with the one that
    shards.json has of it. For a folder come the rows of its overlays behind (`verify_overlays`). Of a
    selection the shards that it needs are compared so, and at last whether they hold what it selected.
    """
    tars, chosen = _tars_of(path)
    folder = filesystem.to_text(path) if chosen is None else resolve_shards(path)
    totals = (read_totals(folder) if filesystem.is_dir(folder) else None) or {}
    wanted = {name: digest for name, _, _, digest, _ in totals.get("tars", ())}
    for tar in tars:
        samples, problem = 0, None
        try:
            for _ in _verified(tar, wanted.get(filesystem.basename(tar))):
                samples += 1
        except LuminaError as error:
            problem = str(error)
        yield {"shard": tar, "samples": samples, "ok": problem is None, "problem": problem}
    if filesystem.is_dir(folder):
        yield from verify_overlays(folder, tars)
    if chosen is not None:
        yield _verified_selection(filesystem.to_text(path), sum(map(len, chosen.values())))


def _verified_selection(path: str, samples: int) -> dict:
    problem = None
    try:
        for _ in selected_entries(path):
            pass
    except LuminaError as error:
        problem = str(error)
    return {"selection": path, "samples": samples, "ok": problem is None, "problem": problem}


def _verified(tar: str, digest: str | None) -> Iterator[dict]:
    place = index_path(tar)
    if not filesystem.is_file(place):
        raise LuminaError(f"{tar} has no index, so nothing to compare with")
    if digest and hashlib.sha256(filesystem.read_file(place)).hexdigest() != digest:
        raise LuminaError(f"{place} is not the one that was written")
    for entry in read_index(tar):
        row = read_entry(tar, entry)
        if hashlib.sha256(row["image"].read()).hexdigest() != entry["sha256"]:
            raise LuminaError(f"{row['image']}: its bytes are not those that were written")
        if "row_sha256" in entry:
            data = read_span(tar, *entry["row"], f"{entry['key']}.json")
            if hashlib.sha256(data).hexdigest() != entry["row_sha256"]:
                raise LuminaError(f"{tar}#{entry['key']}.json: its bytes are not those that were written")
        yield entry

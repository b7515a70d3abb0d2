"""Describe and verify shards. This docstring defines the format of a folder of shards.

A folder of shards holds plain webdataset tars. The same rows give the same bytes on every machine, and the
folder may be any URL that fsspec supports.

    000000.tar           USTAR. Per sample {key}.jpg|png|webp... and {key}.json (its row); {key}.depth.png and
                         {key}.masks.png if the row has ground truth (images/depth.py)
    000000.index.jsonl   one line per sample, in the order of the tar; see below
    manifest.parquet     all indexes as one table (shards/manifest.py)
    shards.json          totals and settings; written last, so a folder without it is unfinished
    rejects.jsonl        one line per rejected row: row (its number in the input), key, image, code, reason;
                         "upstream": true if an earlier command rejected it
    left_out.json        {kind: number} of images of the source that did not become rows, if there are any
    journal/             only while the folder is unfinished (shards/journal.py)
    update/              only while an update of the folder is unfinished (shards/update/commit.py)

A line of an index has these keys; keys without a value are omitted:

    key, image           the key, and the name of the image's member
    offset, length       span of the image's bytes in the tar
    sha256               hash of the image's bytes
    width, height        in pixels, after rotation by EXIF
    row, row_sha256      [offset, length] and hash of the JSON member
    depth, masks         [offset, length] of the ground truth
    characters, tokens   {language: {level: number}} of the captions
    score, scores        number, {name: number}
    notes                conversions that readers apply to the image (NOTES in images/ingest.py)
    source, origin       the source of the rows; the file that the image is from
    rejected_captions    {code: number} of captions that failed their checks

shards.json holds samples, shards, rejects, bytes, rows; "input", a digest of all rows; "settings"; "tars", a
list of [name, samples, bytes, sha256 of the index, bytes of the index]; "upstream", [number, digest] of the
rows that an earlier command rejected; after an update (shards/update/plan.py) also "slots", the places in
shards that are used, if they are not as many as the rows, and "edits", the number of updates that changed or
removed rows.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.overlays.verify import verify_overlays
from lumina_cli.core.shards.reader import open_shards, read_entry, read_totals
from lumina_cli.core.shards.selection import is_selection, resolve_shards, selected_entries, selected_keys
from lumina_cli.core.shards.tar import index_path, read_index, read_span


def describe_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, bytes, smallest and largest image size, whether it has an index.

    For a selection only the shards that it uses, with "selected", the number of selected samples.
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


def count_captions(folder: str) -> tuple[int, int]:
    """Return (samples, samples without captions) of a finished folder of shards."""
    import pyarrow.compute as pc

    samples = missing = 0
    for batch in manifest.read_manifest(folder, ["characters"]):
        lengths = pc.list_value_length(batch["characters"]).fill_null(0)
        samples, missing = samples + len(lengths), missing + pc.sum(pc.equal(lengths, 0)).as_py()
    return samples, missing


def _tars_of(path: str | Path) -> tuple[list[str], dict[str, frozenset[str]] | None]:
    """Return the tars of a folder, tar or selection, and {tar name: selected keys} of a selection."""
    if not is_selection(path):
        return open_shards(path), None
    chosen = selected_keys(path) or {}
    return [tar for tar in open_shards(resolve_shards(path)) if filesystem.basename(tar) in chosen], chosen


def verify_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, ok, and "problem", what is wrong or None.

    Every image and row is compared with its hash in the index, and every index with its hash in shards.json.
    A folder also yields the rows of its overlays (`verify_overlays`). For a selection only the shards that it
    uses are verified; a last row reports whether they still hold the selected samples.
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
        raise LuminaError(f"{tar} does not have an index to compare with")
    if digest and hashlib.sha256(filesystem.read_file(place)).hexdigest() != digest:
        raise LuminaError(f"checksum mismatch: {place} was modified after it was written")
    for entry in read_index(tar):
        row = read_entry(tar, entry)
        if hashlib.sha256(row["image"].read()).hexdigest() != entry["sha256"]:
            raise LuminaError(f"checksum mismatch: {row['image']} was modified after it was written")
        if "row_sha256" in entry:
            data = read_span(tar, *entry["row"], f"{entry['key']}.json")
            if hashlib.sha256(data).hexdigest() != entry["row_sha256"]:
                raise LuminaError(
                    f"checksum mismatch: {tar}#{entry['key']}.json was modified after it was written"
                )
        yield entry

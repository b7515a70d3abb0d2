"""Reading shards: rows in order, rows by number, pictures by name; all may be URLs (places.py)."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.shards.overlays.reader import Add, open_joiner
from lumina_cli.core.shards.tar import TRUTH, RejectedImage, TarImage, find_tars, read_span, scan_tar

TOTALS = "shards.json"
SELECTED = "select.json"  # of a selection (selection.py), which holds no shards


def index_path(tar: str | Path) -> str:
    """Return the place of the index beside a tar."""
    return filesystem.to_text(tar).removesuffix(".tar") + ".index.jsonl"


def is_own_file(name: str) -> bool:
    """Whether a file of this name, in a folder of shards, is one that `write_shards` wrote."""
    stem = name.removesuffix(".tar").removesuffix(".index.jsonl")
    numbered = name != stem and stem.isascii() and stem.isdecimal() and len(stem) >= 6
    return numbered or name in (TOTALS, "rejects.jsonl", "manifest.parquet")


def read_totals(folder: str | Path) -> dict | None:
    """Return what shards.json of a folder says, None where the folder is unfinished or not ours."""
    place = filesystem.join(folder, TOTALS)
    if not filesystem.is_file(place):
        return None
    return parse_row(filesystem.read_file(place).decode(errors="replace").strip(), place)


def open_shards(path: str | Path) -> list[str]:
    """Return the tars that `path` stands for, in order; LuminaError where a folder of ours is not whole."""
    folder = filesystem.to_text(path)
    if folder.endswith(".tar") and not filesystem.is_dir(folder):
        return find_tars(folder)
    sizes, totals = filesystem.list_sizes(folder), read_totals(folder)
    if totals is None:
        if any(is_own_file(name) and name.endswith(".index.jsonl") for name in sizes):
            raise LuminaError(
                f"{folder} is unfinished: `lumina shard SOURCE {folder}` with the same SOURCE goes on with it"
            )
        if SELECTED in sizes:
            raise LuminaError(f"{folder} is a selection and holds no shards; its {SELECTED} says of which")
        return find_tars(folder)
    ours = [name for name in sizes if name.endswith(".tar") and is_own_file(name)]
    anew = f"`lumina shard SOURCE {folder} --force` writes it anew"
    if len(ours) != totals.get("shards"):
        found = f"{len(ours)} shards, but its {TOTALS} says {totals.get('shards')}"
        raise LuminaError(f"{folder} holds {found}; {anew}")
    for name, _, size, _, index_size in totals.get("tars", ()):
        index = index_path(name)
        for part, wanted in ((name, size), (index, index_size)):
            if sizes.get(part) != wanted and (part != index or part in sizes):  # without index it is scanned
                raise LuminaError(f"{folder}/{part} has {sizes.get(part, 0)} bytes, not {wanted}; {anew}")
    return find_tars(folder) if totals.get("shards") else []


class ShardReader:
    """Random access to the rows of shards, by number; cheap to pickle, holds no open file.

    Tars without an index, which other tools wrote, are scanned once. A row is what the JSON member holds,
    with "image" a TarImage, "key", width and height where they are known, and "depth" and "masks", each a
    TarImage, where the shards hold them.
    """

    def __init__(self, path: str | Path):
        self.tars = open_shards(path)
        self.ends = list(
            accumulate(len(_cached_index(tar, filesystem.file_version(tar))) for tar in self.tars)
        )

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> dict:
        tar, entry = self.entry(number)
        return read_entry(tar, entry)

    def __iter__(self) -> Iterator[dict]:
        return (self[number] for number in range(len(self)))

    def entry(self, number: int) -> tuple[str, dict]:
        """Return (tar, line of its index) of a row."""
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect_right(self.ends, number)
        tar = self.tars[which]
        before = self.ends[which - 1] if which else 0
        return tar, _cached_index(tar, filesystem.file_version(tar))[number - before]


@lru_cache(maxsize=64)
def _cached_index(tar: str, written: str) -> list[dict]:
    return read_index(tar)


def read_shards(path: str | Path, lenient: bool = False) -> Iterator[dict]:
    """Yield the rows of a tar or of a folder of them; "image" is a TarImage, read when it is opened.

    Rows have what overlays add to them; "SHARDS?overlay=NAME@VERSION" names which (overlays/reader.py).
    With `lenient` what is broken becomes a row whose "image" is Refused, in place of an error.
    """
    path, joiner = open_joiner(path)
    for tar in open_shards(path):
        add = joiner.open(tar, read_index(tar)) if joiner.overlays else None
        try:
            for entry in iter_index(tar):
                yield _read_leniently(tar, entry, add) if lenient else _read(tar, entry, add)
        except LuminaError as error:
            if not lenient:
                raise
            yield {"key": filesystem.basename(tar), "image": RejectedImage("", "bad_tar", str(error))}


def _read(tar: str, entry: dict, add: Add | None) -> dict:
    row = read_entry(tar, entry)
    return add(entry, row) if add else row


def _read_leniently(tar: str, entry: dict, add: Add | None) -> dict:
    try:
        return _read(tar, entry, add)
    except LuminaError as error:
        image = RejectedImage(f"{tar}#{entry['image']}", getattr(error, "code", "bad_json"), str(error))
        return {"key": entry["key"], "image": image}


def read_entry(tar: str, entry: dict) -> dict:
    """Return the row of one line of an index."""
    row = {name: entry[name] for name in ("key", "width", "height") if entry.get(name) is not None}
    if entry.get("row"):
        text = read_span(tar, *entry["row"], f"{entry['key']}.json")
        row = parse_row(text.decode(errors="replace"), f"{tar}#{entry['key']}.json") | row
    if entry.get("text") and not any(name in row for name in ("captions", "caption", "text")):
        row["caption"] = (
            read_span(tar, *entry["text"], f"{entry['key']}.txt").decode(errors="replace").strip()
        )
    return row | {name: TarImage(tar, *span) for name, span in image_spans(entry).items()}


def image_spans(entry: dict) -> dict[str, tuple[str, int, int]]:
    """Return the pictures of a sample by name, each as (member, offset, length)."""
    truth = {name: (f"{entry['key']}.{name}.png", *entry[name]) for name in TRUTH if entry.get(name)}
    return {"image": (entry["image"], entry["offset"], entry["length"])} | truth


def read_index(tar: str | Path) -> list[dict]:
    """Return the index of a tar from the file beside it, or by scanning the tar where there is none."""
    return list(iter_index(tar))


def iter_index(tar: str | Path) -> Iterator[dict]:
    """Yield the lines of the index of a tar, checked against its size; a tar without one is scanned."""
    tar = filesystem.to_text(tar)
    place = index_path(tar)
    if not filesystem.is_file(place):
        yield from scan_tar(tar)
        return
    size = filesystem.file_size(tar)
    for number, line in enumerate(filesystem.read_file(place).splitlines(), start=1):
        entry = parse_row(line.decode(errors="replace"), f"{place} line {number}")
        spans = [[entry.get("offset"), entry.get("length")], entry.get("row")]
        spans += [entry[name] for name in (*TRUTH, "text") if name in entry]
        named = isinstance(entry.get("image"), str) and isinstance(entry.get("key"), str)
        if not named or not all(_fits(span, size) for span in spans):
            name = filesystem.basename(tar)
            raise LuminaError(
                f"{place} line {number} does not belong to {name}; delete the index to scan the tar"
            )
        yield entry


def _fits(span: Any, size: int) -> bool:
    whole = (
        isinstance(span, list) and len(span) == 2 and all(type(part) is int and part >= 0 for part in span)
    )
    return whole and sum(span) <= size


def dump_totals(totals: dict) -> bytes:
    """Return the line of shards.json."""
    return json.dumps(totals, ensure_ascii=False).encode() + b"\n"

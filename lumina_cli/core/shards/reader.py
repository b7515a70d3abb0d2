"""Reading shards: their tars, indexes and totals, rows in order and rows by number. Paths may be URLs."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.images.suffixes import LeftOut
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import decode_text, with_captions
from lumina_cli.core.io.jsonl import dump_row, parse_row
from lumina_cli.core.io.row_checks import LongLine
from lumina_cli.core.limits import MAX_ROW, prune_json
from lumina_cli.core.shards.overlays.joiner import Add, open_joiner
from lumina_cli.core.shards.tar import (
    TRUTH,
    RejectedImage,
    TarImage,
    find_tars,
    index_path,
    iter_index,
    read_index,
    read_span,
)

TOTALS = "shards.json"
LEFT_OUT = "left_out.json"  # {kind: number} of images of the source that are not rows (sources/packing.py)
SELECTED = "select.json"  # marks a selection (shards/selection.py), which does not hold shards


def is_own_file(name: str) -> bool:
    """Whether `write_shards` writes files of this name to a folder of shards."""
    stem = name.removesuffix(".tar").removesuffix(".index.jsonl")
    numbered = name != stem and stem.isascii() and stem.isdecimal() and len(stem) >= 6
    return numbered or name in (TOTALS, LEFT_OUT, "rejects.jsonl", "manifest.parquet")


def read_totals(folder: str | Path) -> dict | None:
    """Return the content of shards.json; None if the folder is unfinished or not ours."""
    place = filesystem.join(folder, TOTALS)
    if not filesystem.is_file(place):
        return None
    return parse_row(filesystem.read_file(place).decode(errors="replace").strip(), place)


def open_shards(path: str | Path) -> list[str]:
    """Return the tars of a folder or a tar, in order.

    Raises:
        LuminaError: if the folder was written by `write_shards` and is incomplete, or does not hold shards.
    """
    folder = filesystem.to_text(path)
    if folder.endswith(".tar") and not filesystem.is_dir(folder):
        return find_tars(folder)
    sizes, totals = filesystem.list_sizes(folder), read_totals(folder)
    if totals is None:
        if any(is_own_file(name) and name.endswith(".index.jsonl") for name in sizes):
            raise LuminaError(
                f"{folder} is unfinished; resume it with `lumina shard SOURCE {folder}` and the same SOURCE"
            )
        if SELECTED in sizes:
            raise LuminaError(f"{folder} is a selection and does not hold shards; its {SELECTED} names them")
        return find_tars(folder)
    ours = [name for name in sizes if name.endswith(".tar") and is_own_file(name)]
    rewrite = f"rewrite it with `lumina shard SOURCE {folder} --force`"
    if len(ours) != totals.get("shards"):
        found = f"{len(ours)} shards, but its {TOTALS} lists {totals.get('shards')}"
        raise LuminaError(f"{folder} holds {found}; {rewrite}")
    for name, _, size, _, index_size in totals.get("tars", ()):
        index = index_path(name)
        for part, wanted in ((name, size), (index, index_size)):
            # a missing index is not an error, because the tar is then scanned
            if sizes.get(part) != wanted and (part != index or part in sizes):
                raise LuminaError(f"{folder}/{part} has {sizes.get(part, 0)} bytes, not {wanted}; {rewrite}")
    return find_tars(folder) if totals.get("shards") else []


class ShardReader:
    """Random access to the rows of shards, by number; cheap to pickle, holds no open file.

    Tars of other tools, which do not have an index, are scanned once. A row is the content of the JSON
    member, with "key", "image" (a TarImage), and, if known, "width", "height" and the TarImages "depth" and
    "masks".
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
def _cached_index(tar: str, version: str) -> list[dict]:
    """Return the index of a tar; `version` is only a part of the cache key (`file_version`)."""
    return read_index(tar)


def read_shards(path: str | Path, lenient: bool = False, left_out: LeftOut | None = None) -> Iterator[dict]:
    """Yield the rows of a tar or of a folder of tars; "image" is a TarImage, which is read when it is opened.

    Rows include the fields of overlays; "SHARDS?overlay=NAME@VERSION" selects which
    (shards/overlays/reader.py). With `lenient` a broken sample or tar becomes a row whose "image" is a
    RejectedImage instead of an error. `left_out` receives the members of other tools' tars that are not read.
    """
    path, joiner = open_joiner(path)
    for tar in open_shards(path):
        add = joiner.open(tar, read_index(tar)) if joiner.overlays else None
        try:
            for entry in iter_index(tar, left_out):
                yield _read_leniently(tar, entry, add) if lenient else _read(tar, entry, add)
        except LuminaError as error:
            if not lenient:
                raise
            yield {"key": filesystem.basename(tar), "image": RejectedImage("", "bad_tar", str(error))}


def _read(tar: str, entry: dict, add: Add | None, deep: bool = True) -> dict:
    row = read_entry(tar, entry, deep)
    return add(entry, row) if add else row


def _read_leniently(tar: str, entry: dict, add: Add | None) -> dict:
    try:
        return _read(tar, entry, add, deep=False)
    except LuminaError as error:
        image = RejectedImage(f"{tar}#{entry['image']}", getattr(error, "code", "bad_json"), str(error))
        return {"key": entry["key"], "image": image}


def read_entry(tar: str, entry: dict, deep: bool = True) -> dict:
    """Return the row for a line of an index.

    With `deep`, a row that was packed before the limits of rows is read, with null below MAX_DEPTH.
    """
    row = {name: entry[name] for name in ("key", "width", "height") if entry.get(name) is not None}
    if not deep:
        _check_lengths(tar, entry)
    if entry.get("row"):
        text = read_span(tar, *entry["row"], f"{entry['key']}.json")
        row = _parse_member(text.decode(errors="replace"), f"{tar}#{entry['key']}.json", deep) | row
    if entry.get("text") and not with_captions(row, ("caption", "text")).get("captions"):
        data = read_span(tar, *entry["text"], f"{entry['key']}.txt")
        try:
            row["caption"] = decode_text(data, f"{tar}#{entry['key']}.txt", errors="replace").strip()
        except LuminaError as error:
            raise InvalidImage(str(error), "bad_caption") from error
    return row | {name: TarImage(tar, *span) for name, span in image_spans(entry).items()}


def _check_lengths(tar: str, entry: dict) -> None:
    for name in ("row", "text"):
        if entry.get(name) and entry[name][1] > MAX_ROW:
            raise LuminaError(f"{tar}#{entry['key']}: its {name} is {LongLine.reason}")


def _parse_member(text: str, where: str, deep: bool) -> dict:
    try:
        return parse_row(text, where)
    except LuminaError:
        pruned = prune_json(text) if deep else text
        if pruned == text:
            raise
        return parse_row(pruned, where)


def image_spans(entry: dict) -> dict[str, tuple[str, int, int]]:
    """Return the images of a sample, {name: (member, offset, length)}."""
    truth = {name: (f"{entry['key']}.{name}.png", *entry[name]) for name in TRUTH if entry.get(name)}
    return {"image": (entry["image"], entry["offset"], entry["length"])} | truth


def dump_totals(totals: dict) -> bytes:
    """Return the bytes of shards.json."""
    return dump_row(totals).encode() + b"\n"

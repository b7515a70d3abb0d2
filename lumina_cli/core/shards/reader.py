"""Reading shards: rows in order, rows by number, pictures by name; all may be URLs (places.py)."""

import errno
import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.shards.overlays.reader import Add, open_joiner
from lumina_cli.core.shards.tar import TRUTH, RejectedImage, TarImage, find_tars, read_span, scan

TOTALS = "shards.json"
SELECTED = "select.json"  # of a selection (selection.py), which holds no shards
MAX_BYTES = 1 << 30  # of a picture file: MAX_PIXELS of 16-bit colour are half of that
_GONE = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # no waiting for a pipe
_WEB = ("http", "https", "ftp")  # not fetched for a row's sake: img2dataset does that


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
    return row | {name: TarImage(tar, *span) for name, span in _pictures(entry).items()}


def _pictures(entry: dict) -> dict[str, tuple[str, int, int]]:
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
        yield from scan(tar)
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


def read_image_bytes(image: str | Path | TarImage | RejectedImage) -> bytes:
    """Return the bytes of a picture file: a path, a URL, a TarImage, or its text "DIR/000000.tar#key.png".

    BadPicture with its code where it is missing, no plain file, unreadable, too large or refused.
    """
    if isinstance(image, TarImage | RejectedImage):
        return image.read()
    place = filesystem.to_text(image)
    if filesystem.scheme_of(place) in _WEB:
        raise InvalidImage(
            f"{place}: pictures are not fetched from the web here; img2dataset does that", "web"
        )
    if ".tar#" in place and not (not filesystem.is_url(place) and os.path.isfile(place)):
        tar, _, member = place.rpartition("#")
        return find_member(tar, member).read()
    if filesystem.is_url(place):
        data = filesystem.read_part(
            place, 0, MAX_BYTES + 1
        )  # one request, where asking for the size is another
        if len(data) > MAX_BYTES:
            raise _too_many_bytes(place)
        return data
    return _read_plain_file(place)


def _read_plain_file(path: str) -> bytes:
    try:
        file = os.open(path, _READ)
        try:
            status = os.fstat(file)
            if not filesystem.is_plain_file(status) and not os.path.isdir(path):
                raise InvalidImage(f"{path}: no plain file", "not_a_file")
            if status.st_size > MAX_BYTES:
                raise _too_many_bytes(path)
            data = os.read(file, status.st_size + 1)
            while len(data) < status.st_size and (more := os.read(file, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(file)
    except IsADirectoryError as error:
        raise InvalidImage(f"{path}: is a folder, not a picture", "missing") from error
    except PermissionError as error:
        raise InvalidImage(f"{path}: not readable by this user", "unreadable") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in _GONE:
            raise InvalidImage(f"{path}: cannot be read ({error})", "unreadable") from error
        raise InvalidImage(f"{path}: no such picture", "missing") from error


def _too_many_bytes(place: str) -> InvalidImage:
    return InvalidImage(f"{place}: more than {MAX_BYTES >> 30} GiB, too large for a picture", "too_large")


def find_member(tar: str, member: str) -> TarImage:
    """Return the picture called `member` in a tar."""
    try:
        found = _members(tar, filesystem.file_version(tar))
    except InvalidImage:
        raise
    except LuminaError as error:
        if filesystem.is_file(tar):
            raise
        raise InvalidImage(f"{tar}: no such shard", "missing") from error
    span = found.get(member)
    if span is None:
        raise InvalidImage(f"{tar} holds no picture {member!r}", "missing")
    return TarImage(tar, member, *span)


@lru_cache(maxsize=16)
def _members(tar: str, written: str) -> dict[str, tuple[int, int]]:
    return {member: span for entry in iter_index(tar) for member, *span in _pictures(entry).values()}


def dump_totals(totals: dict) -> bytes:
    """Return the line of shards.json."""
    return json.dumps(totals, ensure_ascii=False).encode() + b"\n"

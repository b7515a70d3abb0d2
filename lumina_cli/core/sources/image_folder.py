"""Folders of pictures as rows: here or on a URL, in an order that does not change, captions from beside them.

Links are followed only while they stay in the folder: a link that leads out of it may lead anywhere.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import SUFFIXES
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import caption_fields, chunked, parse_row, with_captions
from lumina_cli.core.shards.tar import RejectedImage

CAPTION_FILES = (".json", ".txt")  # beside a picture; the first that is there
AT_ONCE = 32  # caption files fetched together from a store


class Found(NamedTuple):
    """A picture of a folder: its key, its place, and the caption file beside it.

    `refused` is (code, reason) where it is not to be read.
    """

    key: str
    place: str
    beside: str | None = None
    refused: tuple[str, str] | None = None


def read_folder(folder: str | Path, lenient: bool = False, links: bool = False) -> Iterator[dict]:
    """Yield a row per picture below a folder, by path, with the captions that lie beside it.

    `links` takes links that lead out of the folder; else the row's "image" is Refused, as is that of what
    cannot be read of the folder. With `lenient` a broken caption file makes the row Refused, too, in place of
    an error.
    """
    folder = filesystem.to_text(folder)
    some = False
    found = _remote(folder) if filesystem.is_url(folder) else _local(folder, links)
    for some, row in ((True, row) for row in _rows(found, filesystem.is_url(folder), lenient)):  # noqa: B007
        yield row
    if not some:
        raise LuminaError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")


def image_row(path: Path) -> dict:
    """Return the row of one picture, with the caption beside it."""
    names = {each.name for each in path.parent.iterdir() if each.is_file()}
    beside = _beside(path.stem, names)
    return _row(Found(path.stem, str(path), beside and str(path.with_name(beside))))


def _rows(found: Iterable[Found], remote: bool, lenient: bool) -> Iterator[dict]:
    if not remote:
        for each in found:
            yield _row(each, lenient)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for group in chunked(found, AT_ONCE):
            yield from pool.map(lambda each: _row(each, lenient), group)


def _row(found: Found, lenient: bool = False) -> dict:
    row = {"key": found.key, "image": found.place}
    if found.refused:
        return row | {"image": RejectedImage(found.place, *found.refused)}
    if found.beside is None:
        return row
    try:
        text = _text(found.beside)
        if found.beside.endswith(".txt"):
            return row | caption_fields(text.strip())
        return row | with_captions(parse_row(text, found.beside)) | {"image": found.place}
    except LuminaError as error:
        if not lenient:
            raise
        return row | {"image": RejectedImage(found.place, "bad_caption", str(error))}


def _text(place: str) -> str:
    try:
        return filesystem.read_file(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LuminaError(f"{place} is not UTF-8 text") from error


def _beside(stem: str, names: Iterable[str]) -> str | None:
    return next((stem + suffix for suffix in CAPTION_FILES if stem + suffix in names), None)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _local(root: str, links: bool) -> Iterator[Found]:
    home = os.path.realpath(root)
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                entries = {entry.name: entry for entry in entries}
        except OSError as error:
            reason = ("unreadable", (error.strerror or "cannot be read").lower())
            yield Found(os.path.relpath(folder, root), folder, None, reason)
            continue
        names = {
            name for name in entries if name.endswith(CAPTION_FILES) and filesystem.is_entry(entries[name])
        }
        for name in sorted(filter(_is_picture, entries)):
            path, stem = os.path.join(folder, name), os.path.splitext(name)[0]
            if filesystem.is_entry(entries[name], folder=True):
                continue
            beside = _beside(stem, names)
            key = os.path.relpath(os.path.join(folder, stem), root) if folder != root else stem
            linked = [each for each in (name, beside) if each and entries[each].is_symlink()]
            refused = None if links else _leads_out(folder, linked, home)
            yield Found(key.replace(os.sep, "/"), path, beside and os.path.join(folder, beside), refused)
        inner = (entry for entry in entries.values() if entry.is_dir(follow_symlinks=False))
        waiting += sorted((entry.path for entry in inner if not entry.name.startswith(".")), reverse=True)


def _leads_out(folder: str, linked: list[str], home: str) -> tuple[str, str] | None:
    for name in linked:
        target = os.path.realpath(os.path.join(folder, name))
        if target != home and not target.startswith(home.rstrip(os.sep) + os.sep):
            return "outside", f"{name} is a link that leads out of the folder; --links takes it"
    return None


def _remote(root: str) -> Iterator[Found]:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        entries = filesystem.remote_entries(folder)
        names = {name for name, _, inner in entries if not inner}
        for name in sorted(filter(_is_picture, names)):
            beside = _beside(os.path.splitext(name)[0], names)
            place = filesystem.join(folder, name)
            key = os.path.splitext(place.removeprefix(root).lstrip("/"))[0]
            yield Found(key, place, beside and filesystem.join(folder, beside))
        inner = (name for name, _, inner in entries if inner and not name.startswith("."))
        waiting += sorted((filesystem.join(folder, name) for name in inner), reverse=True)

"""Image folders as rows: local or remote, in a fixed order, with captions from adjacent files.

Symbolic links are followed only if they stay in the folder: untrusted folders could link to any file.
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

CAPTION_FILES = (".json", ".txt")  # suffixes of caption files; the first existing one is read
CONCURRENT = 32  # caption files fetched concurrently from remote storage


class Found(NamedTuple):
    """An image of a folder.

    key           path below the folder, without suffix
    place         path or URL of the image
    caption_file  path or URL of its caption file, if any
    refused       (code, reason) if the image must not or cannot be read
    """

    key: str
    place: str
    caption_file: str | None = None
    refused: tuple[str, str] | None = None


def read_folder(folder: str | Path, lenient: bool = False, links: bool = False) -> Iterator[dict]:
    """Yield a row per image below a folder, in order of path, with the captions from its caption file.

    lenient  whether an invalid caption file rejects its row instead of raising an error
    links    whether to follow symbolic links that point outside the folder; otherwise these rows are rejected

    Subfolders that cannot be read are rejected rows, too. The "image" of a rejected row is a RejectedImage.

    Raises:
        LuminaError: if the folder contains no images, or a caption file is invalid and `lenient` is False.
    """
    folder = filesystem.to_text(folder)
    some = False
    found = _remote(folder) if filesystem.is_url(folder) else _local(folder, links)
    for some, row in ((True, row) for row in _rows(found, filesystem.is_url(folder), lenient)):  # noqa: B007
        yield row
    if not some:
        raise LuminaError(f"{folder} contains no images ({', '.join(SUFFIXES)})")


def image_row(path: Path) -> dict:
    """Return the row of one image, with the captions from its caption file."""
    names = {each.name for each in path.parent.iterdir() if each.is_file()}
    caption_file = _find_caption(path.stem, names)
    return _row(Found(path.stem, str(path), caption_file and str(path.with_name(caption_file))))


def _rows(found: Iterable[Found], remote: bool, lenient: bool) -> Iterator[dict]:
    """Yield a row per image; caption files of remote folders are fetched concurrently."""
    if not remote:
        for each in found:
            yield _row(each, lenient)
        return
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for group in chunked(found, CONCURRENT):
            yield from pool.map(lambda each: _row(each, lenient), group)


def _row(found: Found, lenient: bool = False) -> dict:
    row = {"key": found.key, "image": found.place}
    if found.refused:
        return row | {"image": RejectedImage(found.place, *found.refused)}
    if found.caption_file is None:
        return row
    try:
        text = _text(found.caption_file)
        if found.caption_file.endswith(".txt"):
            return row | caption_fields(text.strip())
        return row | with_captions(parse_row(text, found.caption_file)) | {"image": found.place}
    except LuminaError as error:
        if not lenient:
            raise
        return row | {"image": RejectedImage(found.place, "bad_caption", str(error))}


def _text(place: str) -> str:
    try:
        return filesystem.read_file(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LuminaError(f"{place} is not UTF-8 text") from error


def _find_caption(stem: str, names: Iterable[str]) -> str | None:
    return next((stem + suffix for suffix in CAPTION_FILES if stem + suffix in names), None)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _local(root: str, links: bool) -> Iterator[Found]:
    """Yield the images below a local folder: those of a folder by name, then those of its subfolders."""
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
        for name in sorted(filter(_is_image, entries)):
            path, stem = os.path.join(folder, name), os.path.splitext(name)[0]
            if filesystem.is_entry(entries[name], folder=True):
                continue
            caption_file = _find_caption(stem, names)
            key = os.path.relpath(os.path.join(folder, stem), root) if folder != root else stem
            linked = [each for each in (name, caption_file) if each and entries[each].is_symlink()]
            refused = None if links else _check_links(folder, linked, home)
            yield Found(
                key.replace(os.sep, "/"), path, caption_file and os.path.join(folder, caption_file), refused
            )
        inner = (entry for entry in entries.values() if entry.is_dir(follow_symlinks=False))
        waiting += sorted((entry.path for entry in inner if not entry.name.startswith(".")), reverse=True)


def _check_links(folder: str, linked: list[str], home: str) -> tuple[str, str] | None:
    """Return (code, reason) if one of these links points outside `home`, else None."""
    for name in linked:
        target = os.path.realpath(os.path.join(folder, name))
        if target != home and not target.startswith(home.rstrip(os.sep) + os.sep):
            return (
                "outside",
                f"{name} is a symbolic link that points outside the folder; use --links to follow it",
            )
    return None


def _remote(root: str) -> Iterator[Found]:
    """Yield the images below a remote folder, in the order of `_local`."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        entries = filesystem.remote_entries(folder)
        names = {name for name, _, inner in entries if not inner}
        for name in sorted(filter(_is_image, names)):
            caption_file = _find_caption(os.path.splitext(name)[0], names)
            place = filesystem.join(folder, name)
            key = os.path.splitext(place.removeprefix(root).lstrip("/"))[0]
            yield Found(key, place, caption_file and filesystem.join(folder, caption_file))
        inner = (name for name, _, inner in entries if inner and not name.startswith("."))
        waiting += sorted((filesystem.join(folder, name) for name in inner), reverse=True)

"""Image folders as rows: local or remote, in a fixed order, with captions from adjacent files.

Symbolic links are followed only if they stay in the folder: untrusted folders could link to any file.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.suffixes import READ, START, SUFFIXES, LeftOut, is_image, sniff, split_suffix
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.shards.tar import RejectedImage
from lumina_cli.core.sources.caption_files import TABLE, CaptionTables, Sidecars, read_caption_files

CONCURRENT = 32  # caption files fetched concurrently from remote storage


class Found(NamedTuple):
    """An image of a folder.

    key            path below the folder, without suffix
    place          path or URL of the image
    caption_files  paths or URLs of its caption files
    fields         fields of a table that names the image
    refused        (code, reason) if the image must not or cannot be read
    """

    key: str
    place: str
    caption_files: tuple[str, ...] = ()
    fields: dict[str, Any] | None = None
    refused: tuple[str, str] | None = None


def read_folder(
    folder: str | Path,
    lenient: bool = False,
    links: bool = False,
    settings: dict[str, Any] | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[dict]:
    """Yield a row per image below a folder, in order of path, with its captions (sources/caption_files.py).

    lenient   whether an invalid caption file rejects its row instead of raising an error
    links     whether to follow symbolic links that point outside the folder; else these rows are rejected
    settings  LOCAL (sources/settings.py)
    left_out  receives the files that do not become rows

    Subfolders that cannot be read are rejected rows, too. The "image" of a rejected row is a RejectedImage.

    Raises:
        LuminaError: if the folder contains no images, or a caption file is invalid and `lenient` is False.
    """
    folder, some = filesystem.to_text(folder), False
    left_out = LeftOut() if left_out is None else left_out
    settings = settings or {}
    lines = settings.get("lines") or "one"
    found = find_images(folder, links, settings.get("text") or "", left_out)
    for some, row in ((True, row) for row in _rows(found, filesystem.is_url(folder), lenient, lines)):  # noqa: B007
        yield row
    if not some:
        instead = f"; it contains {left_out}" if left_out else ""
        instead += f"; {left_out.first_rows} may be a file of rows: name it" if left_out.first_rows else ""
        raise LuminaError(f"{folder} contains no images ({', '.join(SUFFIXES)}){instead}")


def find_images(
    folder: str, links: bool = False, text: str = "", left_out: LeftOut | None = None
) -> Iterator[Found]:
    """Yield the images of a folder; `text` is the column of captions in tables."""
    left_out = LeftOut() if left_out is None else left_out
    tables = CaptionTables(text, left_out)
    yield from _remote(folder, tables) if filesystem.is_url(folder) else _local(folder, links, tables)
    tables.count_unused()


def image_row(path: Path, lines: str = "one") -> dict:
    """Return the row of one image, with the captions from its caption files."""
    sidecars = Sidecars(each.name for each in path.parent.iterdir() if each.is_file())
    found = tuple(str(path.with_name(name)) for name in sidecars.find(path.name))
    return _row(Found(split_suffix(path.name)[0], str(path), found), lines=lines)


def _rows(found: Iterable[Found], remote: bool, lenient: bool, lines: str) -> Iterator[dict]:
    """Yield a row per image; caption files of remote folders are fetched concurrently."""
    if not remote:
        for each in found:
            yield _row(each, lenient, lines)
        return
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for group in chunked(found, CONCURRENT):
            yield from pool.map(lambda each: _row(each, lenient, lines), group)


def _row(found: Found, lenient: bool = False, lines: str = "one") -> dict:
    row = {"key": found.key, "image": found.place}
    if found.refused:
        return row | {"image": RejectedImage(found.place, *found.refused)}
    try:
        own = read_caption_files(list(found.caption_files), lines)
        return row | (found.fields or {}) | own | {"image": found.place}
    except LuminaError as error:
        if not lenient:
            raise
        return row | {"image": RejectedImage(found.place, "bad_caption", str(error))}


def _local(root: str, links: bool, tables: CaptionTables) -> Iterator[Found]:
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
            yield Found(os.path.relpath(folder, root), folder, refused=reason)
            continue
        files = {name for name, entry in entries.items() if not filesystem.is_entry(entry, folder=True)}
        texts = {name for name in files if filesystem.is_entry(entries[name])}
        if not links:
            texts -= {name for name in filter(TABLE.fullmatch, texts) if _is_outside(entries[name], home)}
        for name in sorted(entries.keys() - files):
            if entries[name].is_symlink():
                tables.left_out.add_other("linked folder")
        for each in _images_of(folder, root, files, texts, tables):
            linked = [entries[os.path.basename(path)] for path in (each.place, *each.caption_files)]
            yield each._replace(refused=None if links else _check_links(linked, home))
        inner = (entry for entry in entries.values() if entry.is_dir(follow_symlinks=False))
        waiting += sorted((entry.path for entry in inner if not entry.name.startswith(".")), reverse=True)


def _images_of(
    folder: str, root: str, files: set[str], texts: set[str], tables: CaptionTables
) -> Iterator[Found]:
    """Yield the images among the files directly in a folder, by name; count the other files.

    `texts` are the names of files that may be read as caption files.
    """
    sidecars = Sidecars(texts)
    tables.load(folder, texts)
    remote = filesystem.is_url(folder)
    below = folder.removeprefix(root).lstrip("/") if remote else os.path.relpath(folder, root)
    below = "" if folder == root else below.replace(os.sep, "/") + "/"
    for name in sorted(files):
        if not _is_image(folder, name, sidecars, tables.left_out):
            continue
        place = filesystem.join(folder, name) if remote else os.path.join(folder, name)
        key = below + split_suffix(name)[0]
        captions = tuple(place.removesuffix(name) + each for each in sidecars.find(name))
        yield Found(key, place, captions, tables.find(place))
    for name in sorted(sidecars.unused):
        tables.left_out.add_caption(name)
    if sidecars.hidden:
        tables.left_out.add_other("caption file of an image that has another one", len(sidecars.hidden))


def _is_image(folder: str, name: str, sidecars: Sidecars, left_out: LeftOut) -> bool:
    """Whether a file is an image, by suffix or, without one, by its first bytes; count it if it is not."""
    if name.startswith("."):
        return False
    if is_image(name):
        return True
    if name in sidecars.names or TABLE.fullmatch(name):
        return False
    kind = None
    if not split_suffix(name)[1]:
        kind = sniff(_read_start(folder, name))
        if kind in READ:
            return True
    left_out.add_file(name, kind)
    return False


def _read_start(folder: str, name: str) -> bytes:
    place = filesystem.join(folder, name)
    if not filesystem.is_url(folder) and not os.path.isfile(place):  # a pipe would wait for a writer
        return b""
    try:
        return filesystem.read_part(place, 0, START)
    except (LuminaError, OSError):
        return b""


def _check_links(entries: list[os.DirEntry], home: str) -> tuple[str, str] | None:
    """Return (code, reason) if one of these entries is a link that points outside `home`, else None."""
    for entry in entries:
        if _is_outside(entry, home):
            reason = "is a symbolic link that points outside the folder; `lumina shard --links` follows it"
            return "outside", f"{entry.name} {reason}"
    return None


def _is_outside(entry: os.DirEntry, home: str) -> bool:
    """Whether an entry is a symbolic link that points outside `home`."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return target != home and not target.startswith(home.rstrip(os.sep) + os.sep)


def _remote(root: str, tables: CaptionTables) -> Iterator[Found]:
    """Yield the images below a remote folder, in the order of `_local`."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        entries = filesystem.remote_entries(folder)
        files = {name for name, _, inner in entries if not inner}
        yield from _images_of(folder, root, files, files, tables)
        inner = (name for name, _, inner in entries if inner and not name.startswith("."))
        waiting += sorted((filesystem.join(folder, name) for name in inner), reverse=True)

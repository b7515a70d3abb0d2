"""File operations that take a location: a path on this machine, or any URL that fsspec supports.

Local paths are opened directly, URLs through fsspec (io/remote.py). Files are written whole or not at all.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors, open_aside, sweep
from lumina_cli.core.io.location import (
    Location,
    basename,
    get_scheme,
    is_process_local,
    is_url,
    join,
    parent,
    to_text,
)
from lumina_cli.core.io.parallel.process_pool import map_in_threads
from lumina_cli.core.io.remote import (
    NotFound,
    Unreachable,
    open_filesystem,
    open_for_upload,
    remote_entries,
    remote_errors,
)

__all__ = [
    "Location",
    "NotFound",
    "Unreachable",
    "basename",
    "file_size",
    "file_version",
    "get_scheme",
    "is_dir",
    "is_entry",
    "is_file",
    "is_process_local",
    "is_regular_file",
    "is_url",
    "join",
    "list_folders",
    "list_names",
    "list_sizes",
    "make_dir",
    "move",
    "open_file",
    "open_filesystem",
    "open_for_writing",
    "parent",
    "read_file",
    "read_part",
    "remote_entries",
    "remote_errors",
    "remove",
    "remove_dir",
    "remove_partial",
    "to_text",
    "write_file",
]


def is_file(place: Location) -> bool:
    """Whether a file exists."""
    place = to_text(place)
    if not is_url(place):
        return os.path.isfile(place)
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return bool(system.isfile(path))


def is_dir(place: Location) -> bool:
    """Whether a folder exists; in an object store: whether any object has this prefix."""
    place = to_text(place)
    if not is_url(place):
        return os.path.isdir(place)
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return bool(system.isdir(path))


def list_sizes(folder: Location) -> dict[str, int]:
    """Return {name: size in bytes} of the files directly in a folder, sorted by name; {} without a folder."""
    folder = to_text(folder)
    if not is_url(folder):
        if not os.path.isdir(folder):
            return {}
        with os.scandir(folder) as entries:
            return dict(sorted((entry.name, entry.stat().st_size) for entry in entries if is_entry(entry)))
    return {name: size for name, size, is_dir in remote_entries(folder) if not is_dir}


def list_names(folder: Location) -> list[str]:
    """Return the sorted names of all entries directly in a folder; faster than `list_sizes` for many."""
    folder = to_text(folder)
    if is_url(folder):
        return [name for name, *_ in remote_entries(folder)]
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def list_folders(place: str) -> list[str]:
    """Return the sorted names of the folders directly in a location; [] if it does not exist."""
    place = to_text(place)
    if is_url(place):
        return [name for name, _, folder in remote_entries(place) if folder]
    if not os.path.isdir(place):
        return []
    with os.scandir(place) as found:
        return sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))


def is_entry(entry: os.DirEntry, folder: bool = False) -> bool:
    """Whether an entry of a local folder is a file (or, with `folder`, a folder); False for a link loop."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        return False


def file_size(place: Location) -> int:
    """Return the size of a file in bytes."""
    place = to_text(place)
    if not is_url(place):
        return os.stat(place).st_size
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return int(system.size(path))


def file_version(place: Location) -> str:
    """Return a text that changes when a file changes (size and date, or the ETag of an object).

    Raises:
        LuminaError: if the file does not exist.
    """
    place = to_text(place)
    if not is_url(place):
        try:
            found = os.stat(place)
        except (OSError, ValueError) as error:
            raise LuminaError(f"{place}: no such file") from error
        return f"{found.st_size} {found.st_mtime_ns}"
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        found = system.info(path)
    return " ".join(str(found.get(name)) for name in ("size", "ETag", "etag", "mtime", "created"))


def open_file(place: Location) -> IO[bytes]:
    """Open a file for reading bytes; the file supports seek.

    Raises:
        LuminaError: if the file does not exist or cannot be opened.
    """
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "read"):
            return system.open(path, "rb")
    try:
        return open(place, "rb")  # the caller closes it
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LuminaError(f"{place}: {reason.lower() if reason else 'cannot be opened'}") from error


def read_file(place: Location) -> bytes:
    """Return all bytes of a file."""
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "read"):
            return bytes(system.cat_file(path))
    with open_file(place) as file:
        return file.read()


def read_part(place: Location, offset: int, length: int) -> bytes:
    """Return `length` bytes of a file from byte `offset`; fewer if the file ends before."""
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "read"):
            return bytes(system.cat_file(path, start=offset, end=offset + length))
    with open_file(place) as file:
        file.seek(offset)
        return file.read(length)


def is_regular_file(status: os.stat_result) -> bool:
    """Whether a status belongs to a regular file, not to a folder, pipe or device."""
    return stat.S_ISREG(status.st_mode)


@contextmanager
def open_for_writing(place: Location, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `place` if the block succeeds; otherwise nothing appears there.

    `durable` is that of `atomic_write`. The block may also read other files, so the caller wraps its own
    writes in `disk_errors`.
    """
    place = to_text(place)
    if is_url(place):
        with open_for_upload(place) as file:
            yield file
        return
    with atomic_write(place, durable=durable) as aside, open_aside(aside, place) as file:
        yield file


def write_file(place: Location, data: bytes, durable: bool = True) -> None:
    """Write a small file, whole or not at all; `durable` is that of `atomic_write`."""
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "written"):
            system.pipe_file(path, data)
        return
    with disk_errors(place), open_for_writing(place, durable) as file:
        file.write(data)


def remove(folder: Location, names: list[str]) -> None:
    """Remove files from a folder; a missing file is not an error."""
    folder = to_text(folder)
    if not is_url(folder):
        for name in names:
            Path(folder, name).unlink(missing_ok=True)
        return
    for _ in map_in_threads(_remove_remote, [join(folder, name) for name in names]):
        pass


def _remove_remote(place: str) -> None:
    system, path = open_filesystem(place)
    with remote_errors(place, "removed"), suppress(FileNotFoundError):
        system.rm_file(path)


def move(source: Location, target: Location) -> None:
    """Move a file within a file system; it replaces `target`."""
    source, target = to_text(source), to_text(target)
    if not is_url(source):
        with disk_errors(target):
            os.replace(source, target)
        return
    system, path = open_filesystem(source)
    with remote_errors(target, "written"):
        system.cp_file(path, open_filesystem(target)[1])
        system.rm_file(path)


def make_dir(folder: Location) -> None:
    """Create a folder and its parents.

    Raises:
        LuminaError: if writing fails.
        UsageError: if a file has this name.
    """
    folder = to_text(folder)
    if os.path.exists(folder) and not os.path.isdir(folder) and not is_url(folder):
        raise UsageError(f"{folder} is a file, not a folder")
    if not is_url(folder):
        with disk_errors(folder):
            os.makedirs(folder, exist_ok=True)


def remove_partial(folder: Location) -> None:
    """Remove the temporary files that killed writers left in a local folder that this process has locked."""
    folder = to_text(folder)
    if not is_url(folder):
        sweep(folder, exclusive=True)


def remove_dir(folder: Location) -> None:
    """Remove an empty folder; a folder that is missing or not empty is left alone."""
    folder = to_text(folder)
    if is_url(folder):
        system, path = open_filesystem(folder)
        with suppress(OSError):
            system.rmdir(path)
        return
    with suppress(OSError):
        os.rmdir(folder)

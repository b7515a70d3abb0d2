"""Where files are: a path of this machine, or a URL that fsspec knows (s3://, gs://, memory://...).

A place is a text. Paths of this machine are opened by themselves, everything else through fsspec. What a
remote file is written from has no name here until it is uploaded whole, so a killed run leaves no litter.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors, open_aside

Location = str | Path
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # scheme: the extra that brings its client
LEFT_BEHIND = re.compile(r"\.[0-9a-f]{12}\.part(\..*)?")  # what atomic_write writes to
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PATH_OF_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)  # what pathlib makes of a URL


class NotFound(LuminaError):
    """A file that is missing; `code` as that of BadPicture."""

    code = "missing"


class Unreachable(LuminaError):
    """A place whose client, or the machine that it asks, refuses."""

    code = "unreadable"


def to_text(place: Location) -> str:
    """Return a place as text without a slash at its end; file:// URLs become paths.

    UsageError for chains of file systems (a::b): no part of one has any use here.
    """
    if isinstance(place, Path):  # pathlib takes two slashes for one
        place = _PATH_OF_URL.sub(r"\1://", str(place))
    if _URL.match(place) and "::" in place:
        raise UsageError(f"{place}: one file system at a time; '::' has no meaning here")
    if place.startswith("file://"):
        place = place.removeprefix("file://") or "/"
    bare = place.rstrip("/")
    return place if bare.endswith(":") or not bare else bare


def is_url(place: Location) -> bool:
    """Whether a place is on another file system than this machine's."""
    return scheme_of(place) not in ("", "file")


def scheme_of(place: Location) -> str:
    """Return the scheme of a URL in small letters, "" for a path."""
    found = (_PATH_OF_URL if isinstance(place, Path) else _URL).match(str(place))
    return found[1].lower() if found else ""


def in_this_process(place: Location) -> bool:
    """Whether a place lives in this process alone, so that no worker can see it."""
    return scheme_of(place) == "memory"


def join(folder: Location, name: str) -> str:
    """Return the place of a file in a folder."""
    folder = to_text(folder)
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def basename(place: Location) -> str:
    """Return the last part of a place."""
    return to_text(place).rpartition("/")[2]


def parent(place: Location) -> str:
    """Return the folder that a place is in; "." for a bare name."""
    folder, slash, _ = to_text(place).rpartition("/")
    return folder or ("/" if slash else ".")


def open_filesystem(url: Location) -> tuple[Any, str]:
    """Return (file system of fsspec, path on it) of a URL; MissingPart names the extra that brings it."""
    import fsspec

    url = to_text(url)
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)  # other processes write there, too
    except ImportError as error:
        extra = EXTRAS.get(scheme_of(url))
        hint = f"`pip install 'lumina-cli[{extra}]'`" if extra else _reason(error)
        raise MissingDependency(f"{url} needs a client that is not installed: {hint}") from error
    except ValueError as error:
        raise UsageError(f"{url}: no such kind of place ({_reason(error)})") from error


@contextmanager
def remote_errors(url: str, doing: str) -> Iterator[None]:
    """Turn whatever a client raises while `doing` ("read", "written") into one line that names the place."""
    try:
        yield
    except (LuminaError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such file") from error
    except Exception as error:  # the clients of fsspec raise their transport's errors
        raise Unreachable(f"{url} cannot be {doing} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:199] + "…"


def is_file(place: Location) -> bool:
    """Whether there is a file."""
    place = to_text(place)
    if not is_url(place):
        return os.path.isfile(place)
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return bool(system.isfile(path))


def is_dir(place: Location) -> bool:
    """Whether there is a folder; on a store of objects: something whose name begins so."""
    place = to_text(place)
    if not is_url(place):
        return os.path.isdir(place)
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return bool(system.isdir(path))


def list_sizes(folder: Location) -> dict[str, int]:
    """Return the files right in a folder, name to bytes, sorted by name; {} where there is no folder."""
    folder = to_text(folder)
    if not is_url(folder):
        if not os.path.isdir(folder):
            return {}
        with os.scandir(folder) as entries:
            return dict(sorted((entry.name, entry.stat().st_size) for entry in entries if holds(entry)))
    return {name: size for name, size, is_dir in remote_entries(folder) if not is_dir}


def list_names(folder: Location) -> list[str]:
    """Return the names of what is right in a folder, sorted; sooner than `listing` where there are many."""
    folder = to_text(folder)
    if is_url(folder):
        return [name for name, *_ in remote_entries(folder)]
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def holds(entry: os.DirEntry, folder: bool = False) -> bool:
    """Whether an entry of a folder of this machine is a file, or a folder; no for a loop of links."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        return False


def remote_entries(folder: str) -> list[tuple[str, int, bool]]:
    """Return (name, bytes, whether a folder) of what is right in a remote folder, as it is now, sorted."""
    system, path = open_filesystem(folder)
    with remote_errors(folder, "read"):
        system.invalidate_cache(path)
        try:
            found = system.ls(path, detail=True)
        except FileNotFoundError:
            return []
    entries = (
        (each["name"].rstrip("/"), each.get("size") or 0, each["type"] == "directory") for each in found
    )
    own = path.rstrip("/")
    return sorted((name.rpartition("/")[2], size, folder) for name, size, folder in entries if name != own)


def file_size(place: Location) -> int:
    """Return the bytes of a file."""
    place = to_text(place)
    if not is_url(place):
        return os.stat(place).st_size
    system, path = open_filesystem(place)
    with remote_errors(place, "read"):
        return int(system.size(path))


def file_version(place: Location) -> str:
    """Return a text that is another one once a file has changed; LuminaError where it is missing."""
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
    """Open a file for reading bytes, with seek; LuminaError where it is missing."""
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
    """Return `length` bytes of a file from `offset` on, fewer where it ends before."""
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "read"):
            return bytes(system.cat_file(path, start=offset, end=offset + length))
    with open_file(place) as file:
        file.seek(offset)
        return file.read(length)


def is_plain_file(status: os.stat_result) -> bool:
    """Whether a status is a file's: not a folder's, a pipe's or a device's."""
    return stat.S_ISREG(status.st_mode)


@contextmanager
def writing(place: Location, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `place` when the block ends well; otherwise nothing is there.

    `durable` as in `atomic_write`. What the disk refuses in the block is the caller's to tell
    (`disk_errors`): it may read files, too.
    """
    place = to_text(place)
    if not is_url(place):
        with atomic_write(place, durable=durable) as aside, open_aside(aside, place) as file:
            yield file
        return
    system, path = open_filesystem(place)
    with tempfile.TemporaryFile() as file:
        yield file
        file.flush()
        with remote_errors(place, "written"):
            _upload(system, file, path)


def _upload(system: Any, file: IO[bytes], path: str) -> None:
    own = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(own):  # by this name a file is read that has no other
        system.put_file(own, path)
        return
    with tempfile.NamedTemporaryFile() as named:
        file.seek(0)
        shutil.copyfileobj(file, named)
        named.flush()
        system.put_file(named.name, path)


def write_file(place: Location, data: bytes, durable: bool = True) -> None:
    """Write a small file, whole or not at all; `durable` as in `atomic_write`."""
    place = to_text(place)
    if is_url(place):
        system, path = open_filesystem(place)
        with remote_errors(place, "written"):
            system.pipe_file(path, data)
        return
    with disk_errors(place), writing(place, durable) as file:
        file.write(data)


def remove(folder: Location, names: list[str]) -> None:
    """Remove files from a folder; those that are not there are no error."""
    folder = to_text(folder)
    if not is_url(folder):
        for name in names:
            Path(folder, name).unlink(missing_ok=True)
        return
    system, _ = open_filesystem(folder)
    for name in names:
        with remote_errors(join(folder, name), "removed"):
            try:
                system.rm_file(open_filesystem(join(folder, name))[1])
            except FileNotFoundError:
                continue


def make_dir(folder: Location) -> None:
    """Make a folder; LuminaError where the disk refuses, UsageError where a file has its name."""
    folder = to_text(folder)
    if os.path.exists(folder) and not os.path.isdir(folder) and not is_url(folder):
        raise UsageError(f"{folder} is a file; shards are written to a folder")
    if not is_url(folder):
        with disk_errors(folder):
            os.makedirs(folder, exist_ok=True)


def remove_partial(folder: Location) -> None:
    """Remove from a folder of this machine what writers that were killed left half done."""
    folder = to_text(folder)
    if not is_url(folder):
        remove(folder, [name for name in list_sizes(folder) if LEFT_BEHIND.fullmatch(name)])


def remove_dir(folder: Location) -> None:
    """Remove an empty folder; one that is not empty, or not there, stays as it is."""
    folder = to_text(folder)
    if is_url(folder):
        system, path = open_filesystem(folder)
        with suppress(OSError):
            system.rmdir(path)
        return
    with suppress(OSError):
        os.rmdir(folder)

"""Remote file systems through fsspec: clients, their errors as one line, listings and uploads."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.io.location import Location, basename, get_scheme, is_url, join, parent, to_text

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme -> extra that installs its client


class NotFound(LuminaError):
    """A file that does not exist; `code` has the same meaning as in `InvalidImage`."""

    code = "missing"


class Unreachable(LuminaError):
    """A location whose client or server refuses the request."""

    code = "unreadable"


def open_filesystem(url: Location) -> tuple[Any, str]:
    """Return (fsspec file system, path on it) of a URL.

    Raises:
        MissingDependency: if the client is not installed; the message names the extra that installs it.
        UsageError: if the scheme is unknown.
    """
    import fsspec

    url = to_text(url)
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)  # other processes write there, too
    except ImportError as error:
        extra = EXTRAS.get(get_scheme(url))
        hint = f"`pip install 'lumina-cli[{extra}]'`" if extra else _reason(error)
        raise MissingDependency(f"{url} needs a client that is not installed: {hint}") from error
    except ValueError as error:
        raise UsageError(f"{url}: unsupported URL scheme ({_reason(error)})") from error
    except LuminaError:
        raise
    except Exception as error:  # some clients connect, or require other arguments, when they are made
        raise Unreachable(f"{url} cannot be opened ({_reason(error)})") from error


@contextmanager
def remote_errors(url: str, doing: str) -> Iterator[None]:
    """Turn any error that a client raises while `doing` ("read", "written") into one line with the location.

    Raises:
        NotFound: if the file does not exist.
        Unreachable: for any other error of the client.
    """
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


def remote_entries(folder: str) -> list[tuple[str, int, bool]]:
    """Return (name, size in bytes, is a folder) of each entry of a remote folder, uncached, sorted."""
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


@contextmanager
def open_for_upload(url: str) -> Iterator[IO[bytes]]:
    """Yield an anonymous local file; its content is uploaded to `url` in one request if the block succeeds.

    The file has no name until then, so a killed process leaves nothing behind on either side.
    """
    system, path = open_filesystem(url)
    with tempfile.TemporaryFile() as file:
        yield file
        file.flush()
        with remote_errors(url, "written"):
            _upload(system, file, path)


def _upload(system: Any, file: IO[bytes], path: str) -> None:
    own = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(own):  # on Linux the anonymous file can be read under this path
        system.put_file(own, path)
        return
    with tempfile.NamedTemporaryFile() as named:
        file.seek(0)
        shutil.copyfileobj(file, named)
        named.flush()
        system.put_file(named.name, path)


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder at a URL, with the few operations of pathlib.Path that folders of images need."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(join(self.url, name))

    @property
    def name(self) -> str:
        """The last component."""
        return basename(self.url)

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the last component, with its dot."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that contains this location."""
        return RemotePath(parent(self.url))

    def exists(self) -> bool:
        """Whether a file exists here."""
        system, path = open_filesystem(self.url)
        with remote_errors(self.url, "read"):
            return bool(system.isfile(path))

    def read_bytes(self) -> bytes:
        """Return all bytes of the file."""
        system, path = open_filesystem(self.url)
        with remote_errors(self.url, "read"):
            return bytes(system.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of the file."""
        return self.read_bytes().decode(encoding)


AnyPath = Path | RemotePath


def to_path(place: "Location | RemotePath") -> AnyPath:
    """Return a location as a Path if it is on this machine, else as a RemotePath."""
    if isinstance(place, RemotePath):
        return place
    text = to_text(place)
    return RemotePath(text) if is_url(text) else Path(text)

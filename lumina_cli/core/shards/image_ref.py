"""ImageRef: one interface for everything that the "image" of a row may be.

path or URL                      ImageFile
"DIR/000000.tar#key.png"         ImageFile, found through the index of the tar
TarImage                         itself: its place in the tar is known (shards/tar.py)
RejectedImage                    itself: `read` raises the stored reason (shards/tar.py)
bytes of an image file, or a
PIL image                        MemoryImage
anything else, or nothing        MissingImage
"""

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import InvalidImage, png_bytes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.allowed import is_system_file
from lumina_cli.core.shards.reader import image_spans
from lumina_cli.core.shards.tar import RejectedImage, TarImage, iter_index

MAX_BYTES = 1 << 30  # of an image file; MAX_PIXELS of 16-bit colour take half of that
_NOT_FOUND = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
# O_NONBLOCK: opening a named pipe must not wait for a writer
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WEB = ("http", "https", "ftp")  # never fetched on behalf of a row; img2dataset downloads such images


@runtime_checkable
class ImageRef(Protocol):
    """An image of a row: where it is from, and the bytes of its file on demand."""

    @property
    def origin(self) -> str | None:
        """The path, URL or tar member as text; None for an image in memory."""

    def read(self) -> bytes:
        """Return the bytes of the image file, or raise InvalidImage."""


@dataclass(frozen=True)
class ImageFile:
    """An image named by a path, a URL or the text of a tar member ("DIR/000000.tar#key.png")."""

    place: str | Path

    @property
    def origin(self) -> str:
        """The name as it was given."""
        return str(self.place)

    @property
    def local_path(self) -> str | None:
        """The path, or None for a URL."""
        return None if filesystem.is_url(self.place) else str(self.place)

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            InvalidImage: if the file is missing, not a regular file, unreadable, larger than MAX_BYTES, or on
                the web. `code` names the reason.
        """
        if not self.origin.strip():
            raise InvalidImage("the row has no 'image'", "no_image")
        place = filesystem.to_text(self.place)
        if filesystem.get_scheme(place) in _WEB:
            raise InvalidImage(
                f"{place}: images are not fetched from the web; download them with img2dataset", "web"
            )
        if ".tar#" in place and not (not filesystem.is_url(place) and os.path.isfile(place)):
            tar, _, member = place.rpartition("#")
            return find_member(tar, member).read()
        if filesystem.is_url(place):
            data = filesystem.read_part(place, 0, MAX_BYTES + 1)  # asking for the size costs a second request
            if len(data) > MAX_BYTES:
                raise _too_many_bytes(place)
            return data
        return _read_local_file(place)


@dataclass(frozen=True)
class MemoryImage:
    """An image in memory: the bytes of an image file."""

    data: bytes
    origin: None = None

    def read(self) -> bytes:
        """Return the bytes."""
        return self.data


@dataclass(frozen=True)
class MissingImage:
    """A row without a usable "image"."""

    origin: None = None

    def read(self) -> bytes:
        """Raise InvalidImage with the code "no_image"."""
        raise InvalidImage("the row has no 'image'", "no_image")


class DeferredImage:
    """The image of a row that a worker makes, such as one that is rendered: small, so that it can be sent."""

    @staticmethod
    def make_all(images: "list[Any]") -> list[dict]:
        """Return for each of several images of a class the fields of its row: "image" (bytes) and others."""
        raise NotImplementedError


def image_ref(image: Any) -> ImageRef:
    """Return the ImageRef of a row's "image"; unusable values give one whose `read` raises InvalidImage."""
    if isinstance(image, TarImage | RejectedImage):
        return image
    if isinstance(image, str | Path):
        return ImageFile(image)
    if isinstance(image, bytes):
        return MemoryImage(image)
    if isinstance(image, Image.Image):
        return MemoryImage(png_bytes(image.convert("RGB")))
    return image if isinstance(image, ImageRef) else MissingImage()


def _read_local_file(path: str) -> bytes:
    if is_system_file(path):
        raise InvalidImage(f"{path}: a file of the system, which rows must not name", "not_a_file")
    try:
        file = os.open(path, _READ)
        try:
            # of the open file, not of the path: the path may lead elsewhere by now
            status = os.fstat(file)
            if not filesystem.is_regular_file(status) and not os.path.isdir(path):
                raise InvalidImage(f"{path}: not a regular file", "not_a_file")
            if status.st_size > MAX_BYTES:
                raise _too_many_bytes(path)
            data = os.read(file, status.st_size + 1)
            while len(data) < status.st_size and (more := os.read(file, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(file)
    except IsADirectoryError as error:
        raise InvalidImage(f"{path}: is a folder, not an image", "missing") from error
    except PermissionError as error:
        raise InvalidImage(f"{path}: not readable by this user", "unreadable") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in _NOT_FOUND:
            raise InvalidImage(f"{path}: cannot be read ({error})", "unreadable") from error
        raise InvalidImage(f"{path}: no such image", "missing") from error


def _too_many_bytes(place: str) -> InvalidImage:
    return InvalidImage(f"{place}: more than {MAX_BYTES >> 30} GiB, too large for an image", "too_large")


def find_member(tar: str, member: str) -> TarImage:
    """Return the image called `member` in a tar.

    Raises:
        InvalidImage: if the tar or the member does not exist.
        LuminaError: if the tar exists and cannot be read.
    """
    try:
        found = _member_spans(tar, filesystem.file_version(tar))
    except InvalidImage:
        raise
    except LuminaError as error:
        if filesystem.is_file(tar):
            raise
        raise InvalidImage(f"{tar}: no such shard", "missing") from error
    span = found.get(member)
    if span is None:
        raise InvalidImage(f"{tar} does not contain the image {member!r}", "missing")
    return TarImage(tar, member, *span)


@lru_cache(maxsize=16)
def _member_spans(tar: str, version: str) -> dict[str, tuple[int, int]]:
    """Return (offset, length) by member; `version` is only a part of the cache key (`file_version`)."""
    return {member: span for entry in iter_index(tar) for member, *span in image_spans(entry).values()}

"""Members of tars: written with nothing that differs between machines, read one by one and never unpacked.

Nothing inside a tar is trusted: paths and links in it mean nothing, because no name in it is ever opened.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats.images import SUFFIXES, open_image

LONGEST_KEY = 80
TRUTH = ("depth", "masks")  # {key}.depth.png and {key}.masks.png: what `nano:N?truth=1` knows of a picture


@dataclass(frozen=True)
class TarImage:
    """A picture inside a tar, read when it is needed; as text "DIR/000000.tar#key.png"."""

    tar: str
    member: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Return the bytes of the picture's file."""
        return read_span(self.tar, self.offset, self.length, self.member)

    def open(self) -> Image.Image:
        """Return the picture as 8-bit RGB."""
        return open_image(self.read(), name=str(self))

    def __str__(self) -> str:
        return f"{self.tar}#{self.member}"


def read_span(tar: str, offset: int, length: int, member: str) -> bytes:
    """Return the bytes of a member; LuminaError where the tar ends before they do."""
    with open(tar, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise LuminaError(f"{tar}: truncated, {member} is not whole")
    return data


def add_member(file: IO[bytes], name: str, data: bytes) -> int:
    """Write one member with an all-zero date and owner; return the offset of its bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


def safe_key(name: str, taken: dict[str, int]) -> str:
    """Return `name` as a key that tars and webdataset accept, unlike every key in `taken`, and add it there.

    Letters, digits, "-" and "_" of ASCII stay; dots and slashes, which mean something to webdataset, do not.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", name).lstrip("_-")[:LONGEST_KEY] or "picture"
    unique = key
    while unique in taken:
        taken[key] += 1
        unique = f"{key}-{taken[key]}"
    taken[unique] = 1
    return unique


def find_tars(path: str | Path) -> list[Path]:
    """Return the tars that `path` (a tar, or a folder of them) stands for, in order."""
    path = Path(path)
    tars = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    tars = [tar for tar in tars if tar.is_file() and not tar.name.startswith(".")]
    if not tars:
        raise LuminaError(f"{path} holds no shards (*.tar); `lumina shard SOURCE {path}` writes some")
    return tars


def scan(tar: Path) -> Iterator[dict]:
    """Yield index entries of a tar without index: members with one name up to the first dot are a sample."""
    try:
        with tarfile.open(tar, "r:") as archive:
            files = [(member.name, member.offset_data, member.size) for member in archive if member.isreg()]
    except (tarfile.TarError, EOFError) as error:
        raise LuminaError(f"{tar}: truncated or not a tar ({error})") from error
    for key, members in groupby(files, key=lambda file: _stem(file[0])):
        parts = {name[len(key) + 1 :].lower(): (name, offset, size) for name, offset, size in members}
        picture = next((part for suffix, part in parts.items() if f".{suffix}" in SUFFIXES), None)
        if picture:
            row = list(parts["json"][1:]) if "json" in parts else None
            truth = {name: list(parts[f"{name}.png"][1:]) for name in TRUTH if f"{name}.png" in parts}
            entry = {"key": key, "image": picture[0], "offset": picture[1], "length": picture[2], "row": row}
            yield entry | truth


def _stem(name: str) -> str:
    """Return the name of a member up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"

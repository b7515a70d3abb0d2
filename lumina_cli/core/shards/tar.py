"""Members of tars: written with the same bytes on every machine, read one by one, never unpacked.

The content of a tar is untrusted. Paths and links in it have no effect, because no member name is ever
opened.
"""

import re
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import InvalidImage, open_image
from lumina_cli.core.images.suffixes import READ, START, LeftOut, sniff, split_suffix
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.shards.foreign.samples import Member, group_members, split_first_dot
from lumina_cli.core.shards.foreign.tar_headers import BoundedTarInfo

LONGEST_KEY = 80
TRUTH = (
    "depth",
    "masks",
)  # members {key}.depth.png and {key}.masks.png (`nano:N?truth=1`)
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarImage:
    """An image in a tar, read on demand; its text is "DIR/000000.tar#key.png"."""

    tar: str
    member: str
    offset: int
    length: int

    @property
    def origin(self) -> str:
        """The tar and the member as text."""
        return str(self)

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        return read_span(self.tar, self.offset, self.length, self.member)

    def open(self) -> Image.Image:
        """Return the image as 8-bit sRGB."""
        return open_image(self.read(), name=str(self))

    def __str__(self) -> str:
        return f"{self.tar}#{self.member}"


@dataclass(frozen=True)
class RejectedImage:
    """Stands for the "image" of a row that cannot be used: its location, the code and the reason."""

    image: str
    code: str
    reason: str

    @property
    def origin(self) -> str:
        """The path, URL or tar member as text; "" if the row does not name any."""
        return self.image

    def read(self) -> bytes:
        """Raise InvalidImage with the stored code and reason."""
        raise InvalidImage(f"{self.image}: {self.reason}" if self.image else self.reason, self.code)

    def __str__(self) -> str:
        return self.image


def read_span(tar: str, offset: int, length: int, member: str) -> bytes:
    """Return the bytes of a member.

    Raises:
        InvalidImage: if the tar ends before them.
    """
    data = filesystem.read_part(tar, offset, length)
    if len(data) != length:
        raise InvalidImage(f"{tar}: truncated, {member} is incomplete", "truncated")
    return data


# Fields of a USTAR header that are the same for all members, in the order of the format. A header consists
# of name (100 bytes), mode to owner, size (12), date, checksum (8), and all fields from the type on.
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"  # octal mode rw-r--r--, user 0, group 0
_DATE = b"00000000000\0"  # octal seconds since 1970: 0
# "0" for a regular file; link name; magic and version; empty user, group, device numbers and prefix; padding
_TYPE = b"0" + bytes(100) + b"ustar\00000" + bytes(32 + 32 + 16 + 155 + 12)
# The checksum is the sum of all bytes, counting its own eight bytes as spaces; name and size are added later.
_CONSTANT_SUM = sum(_MODE_AND_OWNER) + sum(_DATE) + sum(_TYPE) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """Return the USTAR header of a regular file with zero dates and owners and mode 0644.

    The bytes equal tarfile.TarInfo(name).tobuf(USTAR_FORMAT); building them here is ten times faster.

    Raises:
        LuminaError: if the name or the size exceeds the USTAR limits.
    """
    coded = name.encode()
    if len(coded) > 100 or size >= 8**11:
        raise LuminaError(f"{name}: name or size ({size} bytes) exceeds the USTAR limits (100 bytes, 8 GiB)")
    size_field = b"%011o\0" % size
    check = b"%06o\0" % (_CONSTANT_SUM + sum(coded) + sum(size_field))
    return coded.ljust(100, b"\0") + _MODE_AND_OWNER + size_field + _DATE + check + b" " + _TYPE


def add_member(file: IO[bytes], at: int, name: str, data: bytes) -> int:
    """Write a member at the current byte `at` of a file; return the offset of the next one."""
    file.write(tar_header(name, len(data)))
    file.write(data)
    padding = -len(data) % BLOCK
    if padding:
        file.write(bytes(padding))
    return at + BLOCK + len(data) + padding


_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_UNICODE = unicodedata.ucd_3_2_0  # fixed in every version of Python, so keys never change


def sanitize_key(name: str, taken: dict[str, int]) -> str:
    """Return `name` as a key that tars and webdataset accept, made unique among `taken`, and add it there.

    Letters and digits of all alphabets (Unicode 3.2, composed: NFC), "-" and "_" are kept. Everything else
    becomes "_", also dots and slashes, which have a meaning in webdataset. A key has at most LONGEST_KEY
    bytes.
    """
    text = name if name.isascii() else _letters(name)
    key = _UNSAFE.sub("_", text) if text.isascii() else text
    key = key.lstrip("_-").encode()[:LONGEST_KEY].decode(errors="ignore") or "picture"
    unique = key
    while unique in taken:
        taken[key] += 1
        unique = f"{key}-{taken[key]}"
    taken[unique] = 1
    return unique


def _letters(name: str) -> str:
    """Return a name with "_" for each run of characters that are not letters, digits, marks, "-" or "_"."""
    found = ""
    for character in _UNICODE.normalize("NFC", name):
        kind = _UNICODE.category(character)[0] if character not in "-_" else "L"
        kept = kind in "LN" or (kind == "M" and found[-1:] not in ("", "_", "-", "\0"))
        if kept or not found.endswith("\0"):
            found += character if kept else "\0"
    return found.replace("\0", "_")


def find_tars(path: str | Path) -> list[str]:
    """Return the tars of a tar or a folder, in order.

    Raises:
        LuminaError: if there are none.
    """
    path = filesystem.to_text(path)
    if path.endswith(".tar") and not filesystem.is_dir(path):
        tars = [path] if filesystem.is_file(path) else []
    else:
        names = (
            name for name in filesystem.list_sizes(path) if name.endswith(".tar") and not name.startswith(".")
        )
        tars = [filesystem.join(path, name) for name in names]
    if not tars and not filesystem.is_dir(path):
        raise LuminaError(f"{path}: no such folder of shards; create it with `lumina shard SOURCE {path}`")
    if not tars:
        raise LuminaError(
            f"{path} does not contain shards (*.tar); create them with `lumina shard {path} DEST`"
        )
    return tars


def index_path(tar: str | Path) -> str:
    """Return the path of the index of a tar, which is next to it."""
    return filesystem.to_text(tar).removesuffix(".tar") + ".index.jsonl"


def read_index(tar: str | Path) -> list[dict]:
    """Return all lines of the index of a tar."""
    return list(iter_index(tar))


def iter_index(tar: str | Path, left_out: LeftOut | None = None) -> Iterator[dict]:
    """Yield the lines of the index of a tar, validated against its size; a tar without an index is scanned.

    `left_out` receives the members of a scanned tar that are not read.

    Raises:
        LuminaError: if a line is malformed, or a span is beyond the end of the tar.
    """
    tar = filesystem.to_text(tar)
    place = index_path(tar)
    if not filesystem.is_file(place):
        yield from scan_tar(tar, left_out)
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


def scan_tar(tar: str, left_out: LeftOut | None = None) -> Iterator[dict]:
    """Yield index entries of a tar without an index; see shards/foreign/samples.py for the samples.

    "row" is the span of the JSON member, "text" that of the caption file. Links, devices and sparse files are
    ignored. `left_out` receives the members that belong to no sample.

    Raises:
        LuminaError: if the tar is truncated; all complete samples are yielded before.
    """
    members: list[Member] = []
    problem, images = None, set()
    with filesystem.open_file(tar) as file:
        try:
            for member in _members(tar, file):
                members.append(member)
                if not split_suffix(member[0].rpartition("/")[2])[1] and _has_image(file, *member[1:]):
                    images.add(member[0])
        except LuminaError as error:
            problem = error
            last = split_first_dot(members[-1][0])[0] if members else ""
            while members and split_first_dot(members[-1][0])[0] == last:
                members.pop()  # the sample at the end is not complete
    for sample in group_members(members, TRUTH, left_out, images):
        parts = {name: list(span) for name, (_, *span) in sample.parts.items()}
        offset, length = parts.pop("image")
        entry = {"key": sample.key, "image": sample.image, "offset": offset, "length": length}
        entry |= {"row": parts.pop(".json", None)}
        yield entry | {"text" if name == ".txt" else name: span for name, span in parts.items()}
    if problem is not None:
        raise problem


def _has_image(file: IO[bytes], offset: int, size: int) -> bool:
    """Whether a member is an image by its first bytes; the position in the file stays the same."""
    at = file.tell()
    file.seek(offset)
    start = file.read(min(size, START))
    file.seek(at)
    return sniff(start) in READ


def _members(tar: str, file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of the regular files in a tar."""
    whole = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedTarInfo) as archive:
            for member in archive:
                archive.members = []  # tarfile otherwise keeps every header in memory
                if member.size < 0 or member.offset_data + member.size > whole:
                    yield member.name, 0, 0  # ends the previous sample, which is complete
                    raise EOFError(f"{member.name!r} ends after the tar does")
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise LuminaError(f"{tar}: truncated or not a tar ({error})") from error

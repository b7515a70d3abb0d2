"""What a file under the name of weights or a config really is: a pointer, a web page, part of a download."""

import json
import struct
import zipfile
from pathlib import Path

from lumina_cli.core.errors import LuminaError

SAFETENSORS = (".safetensors", ".sft")
PICKLED = (".pth", ".pt", ".ckpt", ".bin")
HEAD = 4096  # bytes that are enough to recognize a file
LONGEST_HEADER = 100 << 20  # that safetensors accepts
ZIP = b"PK\x03\x04"  # the first bytes of an archive, which `torch.save` writes
HUB_HINT = "on the hub, use a link with /resolve/ instead of /blob/"


def check_content(path: Path) -> None:
    """Check that a file is not something else under its name, and that a .safetensors file is complete.

    Raises:
        LuminaError: if the file is a Git LFS pointer, a web page, a server's message, of another format,
            empty or truncated; the message states which, and what to do.
    """
    if (found := describe_content(path)) is not None:
        raise LuminaError(f"{path} is {found}")


def describe_content(path: Path) -> str | None:
    """Return what a file is if it is not what its name promises; None if nothing is known to be wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # the reader of the file reports it
        return None
    if not head:
        return "empty; download it again"
    found = _describe_pointer(head) or _describe_page(head)
    if found is None:
        found = _describe_text(head, size) if path.suffix == ".json" else _describe_weights(path, head, size)
    return found


def _describe_pointer(head: bytes) -> str | None:
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` there, or download the file"
    if head.lstrip(b"./").startswith((b"annex/objects/", b"git/annex/objects/")):
        return "a git-annex pointer, not the file itself; run `git annex get` there, or download the file"
    return None


def _describe_page(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return f"an HTML page, not the file itself; download the file ({HUB_HINT})"
    if start.startswith((b"<?xml", b"<error")):
        return f"an XML answer of a server, not the file itself; download the file ({HUB_HINT})"
    return None


def _describe_text(head: bytes, size: int) -> str | None:
    """Describe the answer of a server under the name of a JSON file."""
    text = head.strip()
    if size < HEAD and text.startswith(b'{"error"'):
        return f"a server's error message, not the file itself ({_quote(text)}); download it again"
    if size < HEAD and not text.startswith((b"{", b"[")):
        return f"not JSON but text ({_quote(text)}); download it again"
    return None


def _describe_weights(path: Path, head: bytes, size: int) -> str | None:
    """Describe a weight file of another format than its name, or a part of one."""
    if head.startswith(b"GGUF"):
        return "a GGUF file, which lumina does not read; use the .safetensors file of the same model"
    pickled = head.startswith((ZIP, b"\x80\x02", b"\x80\x04"))
    safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LONGEST_HEADER
    if path.suffix in PICKLED:
        if safetensors:
            return f"a safetensors file under the name of a pickled one; rename it to {path.stem}.safetensors"
        return _describe_archive(path, size) if head.startswith(ZIP) else _describe_message(head, size)
    if path.suffix not in SAFETENSORS:
        return None
    if pickled and not safetensors:
        return f"a PyTorch or ZIP file under the name of a safetensors file; rename it to {path.stem}.pth"
    return _describe_part(path, head, size) if safetensors else _describe_message(head, size)


def _describe_message(head: bytes, size: int) -> str | None:
    """Describe a short text, such as "Entry not found", under the name of weights."""
    if size < HEAD and _is_text(head):
        return f"not weights but text ({_quote(head.strip())}); download it again"
    return None


def _describe_archive(path: Path, size: int) -> str | None:
    """Describe an archive that is truncated, or whose members are larger than it when they are unpacked.

    `torch.save` writes members as they are. torch.load unpacks compressed ones into memory, so that a file of
    a few megabytes can take any amount of it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return (
            f"truncated or damaged: after {size:,} bytes, its list of members is missing; download it again"
        )
    if not any(member.filename.endswith("/data.pkl") for member in members):
        return "a ZIP archive, but not of weights: it does not contain data.pkl, which torch.save writes"
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            unpacked = f"{member.filename[:60]!r} is {member.file_size:,} bytes unpacked"
            remedy = "pack it again without compression (`zip -0`)"
            return f"a compressed archive ({unpacked}), which torch.save does not write; {remedy}"
    total = sum(member.file_size for member in members)
    if total > size:
        return f"damaged: {size:,} bytes, but its members have {total:,}; download it again"
    return None


def _describe_part(path: Path, head: bytes, size: int) -> str | None:
    """Describe a .safetensors file that is shorter than its header states."""
    length = int.from_bytes(head[:8], "little")
    if size < 8 + length:
        return f"truncated within its header, after {size:,} bytes; download it again"
    try:
        with path.open("rb") as file:
            file.seek(8)
            tensors = json.loads(file.read(length))
        wanted = 8 + length + max(one["data_offsets"][1] for key, one in tensors.items() if key[:2] != "__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # the reader of the file reports it
    return f"truncated: {size:,} of {wanted:,} bytes; download it again" if size < wanted else None


def _is_text(content: bytes) -> bool:
    try:
        return all(letter.isprintable() or letter.isspace() for letter in content.decode())
    except UnicodeDecodeError:
        return False


def _quote(text: bytes) -> str:
    """Return the start of a text as one line."""
    line = " ".join(text.decode(errors="replace").split())
    return repr(line[:60] + ("..." if len(line) > 60 else ""))

"""Checksums of a folder's files in SHA256SUMS, in the format that `sha256sum -c SHA256SUMS` reads."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "SHA256SUMS"


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return {name: SHA-256 in hex} of files in a folder, hashed in parallel."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the GIL
        return dict(zip(names, pool.map(lambda name: hash_file(folder / name), names), strict=True))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files below a folder."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = hash_files(folder, (name for name in names if name != SUMS))
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / SUMS).write_text(text, encoding="utf-8")


def read_checksums(folder: Path) -> Mapping[str, str] | None:
    """Return {name: SHA-256 in hex} of a folder; None if it has no checksums. A damaged line is left out."""
    path = folder / SUMS
    if not path.is_file():
        return None
    lines = (line.partition("  ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {name: digest for digest, _, name in lines}


def find_damage(folder: Path, names: Iterable[str]) -> str | None:
    """Return the first of `names` that is missing or damaged, with the reason; None if all are whole.

    Files without checksums, as earlier releases wrote them, only have to exist and not be empty.
    """
    names, sums = list(names), read_checksums(folder)
    for name in names:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not (folder / name).stat().st_size:
            return f"{name} is empty"
    if sums is None:
        return None
    for name in names:
        if name not in sums:
            return f"{name} is not listed in {SUMS}"
    try:
        found = hash_files(folder, names)
    except OSError as error:  # a disk that fails to read
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    wrong = next((name for name in names if found[name] != sums[name]), None)
    return wrong and f"{wrong} does not match its checksum in {SUMS}"

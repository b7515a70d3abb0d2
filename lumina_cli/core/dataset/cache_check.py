"""Damage of a latent cache: what its files lack or contain that progress.json does not record.

progress.json contains the size and the CRC-32 of each other file (only the size in older caches).
The CRC-32 of the latents of each image is in rows.jsonl.
"""

import json
import zlib
from contextlib import suppress
from math import prod
from pathlib import Path

from lumina_cli.core.errors import LuminaError

FILES = {"rows.jsonl": "row_bytes", "latents.bin": "latent_bytes", "rejects.jsonl": "reject_bytes"}
COUNTS = ("rows", "rejects", "ready", *FILES.values())
MAX_CHECKED = 1 << 30  # bytes; of a larger latents.bin only the images that are read are verified
BLOCK = 1 << 22


def read_progress(folder: Path) -> dict | None:
    """Return the content of progress.json; None if there is none.

    Raises:
        LuminaError: if it is damaged.
    """
    path = folder / "progress.json"
    if not path.is_file():
        return None
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        progress = None
    counts = [progress.get(name, 0) for name in COUNTS] if isinstance(progress, dict) else [None]
    if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(
        progress.get("done", False), bool
    ):
        raise LuminaError(f"{path.name} is damaged")
    return progress


def find_cache_damage(folder: Path) -> str | None:
    """Return what is damaged in a cache folder, or None if it is whole, unfinished or empty.

    Caches of earlier releases have no checksums, so only the structure of their files is verified.
    """
    try:
        progress = read_progress(folder)
        if progress is None:
            return None
        for name, size in FILES.items():
            _check_file(folder / name, progress.get(size, 0), (progress.get("crc") or {}).get(name))
        if "crc" not in progress:
            _check_rows(folder, progress)
    except LuminaError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None


def _check_file(path: Path, size: int, checksum: int | None) -> None:
    if not path.is_file():
        raise LuminaError(f"{path.name} is missing")
    if path.stat().st_size < size:
        raise LuminaError(f"{path.name} is shorter than recorded")
    if checksum is None or (path.name == "latents.bin" and size > MAX_CHECKED):
        return
    found, left = 0, size
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, BLOCK))
            found, left = zlib.crc32(block, found), left - len(block)
    if found != checksum:
        raise LuminaError(f"{path.name} does not match its checksum")


def _check_rows(folder: Path, progress: dict) -> None:
    """Check that rows.jsonl describes as many images and latents as recorded."""
    with (folder / "rows.jsonl").open("rb") as file:
        lines = file.read(progress["row_bytes"]).splitlines()
    try:
        rows = [json.loads(line) for line in lines]
        latents = sum(2 * prod(row["shape"]) for row in rows if isinstance(row["captions"], dict))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LuminaError("rows.jsonl contains a damaged row") from None
    if len(rows) != progress["rows"] or latents != progress["latent_bytes"]:
        raise LuminaError("rows.jsonl does not describe latents.bin")


def discard_cache(folder: Path) -> None:
    """Mark a cache folder as empty, so that it is built again."""
    with suppress(OSError):
        (folder / "progress.json").unlink(missing_ok=True)

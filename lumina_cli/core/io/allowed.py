"""Which locations a row may name: rows are other people's data, and they must not reach the network.

A row may name a local file, or a file in the folder of its own SOURCE (s3://bucket/rows.jsonl may name
s3://bucket/images/1.jpg). Every other scheme must be allowed by the user (`--allow s3`). Images on the web
are never fetched.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.location import get_scheme, is_url
from lumina_cli.core.registry import did_you_mean

LOCAL = ("", "file", "memory")
WEB = ("http", "https", "ftp")  # img2dataset downloads such images
# Stores that hold shards; a selection, which lumina writes itself, may refer to shards there.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf")

# Files below them are not data: reading one may block, act, or reveal secrets of the process.
SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
_CHAINED = "chained file systems ('::') are not supported; use a single file system"
_MEMORY_FOLDER = "/dev/shm/"  # a file system of ordinary files

_allowed: set[str] = set()


def allow_schemes(names: Iterable[str]) -> None:
    """Allow rows to name locations of these schemes; replaces what was allowed before.

    Raises:
        UsageError: if a scheme is unknown, or one of WEB.
    """
    found = {name.strip().lower().removesuffix("://").removesuffix(":") for name in names}
    for name in sorted(found):
        if name in WEB:
            raise UsageError(f"--allow {name}: images are not fetched from the web; use img2dataset")
        if not _is_known(name):
            hint = did_you_mean(name, STORES) or f"; choose from {', '.join(STORES)}, or another of fsspec"
            raise UsageError(f"--allow {name}: not a URL scheme{hint}")
    _allowed.clear()
    _allowed.update(found)


def _is_known(name: str) -> bool:
    from fsspec.registry import known_implementations, registry

    return bool(re.fullmatch(r"[a-z][a-z0-9+.-]+", name)) and (
        name in known_implementations or name in registry
    )


def refuse_location(place: str, folder: str = "") -> tuple[str, str] | None:
    """Return (code, reason) if a row of a SOURCE in `folder` must not name `place`; None if it may."""
    scheme = get_scheme(place)
    if scheme and scheme not in WEB and "::" in place:
        return "scheme", _CHAINED
    if not is_url(place) or scheme in LOCAL:
        return None
    if scheme in WEB:
        return "web", "images are not fetched from the web; download them with img2dataset"
    if scheme in _allowed or _is_below(place, folder):
        return None
    return "scheme", f"rows do not read from {scheme}:// unless --allow {scheme} permits it"


def is_system_file(path: str | Path) -> bool:
    """Whether a local path leads to a file of the system, below /proc, /sys or /dev (except /dev/shm)."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    below = real.startswith(tuple(f"{folder}/" for folder in SYSTEM_FOLDERS))
    return below and not real.startswith(_MEMORY_FOLDER)


def refuse_store(place: str) -> str | None:
    """Return why the shards of a selection must not be read from `place`; None if they may."""
    scheme = get_scheme(place)
    if not is_url(place) or scheme in (*LOCAL, *STORES) or scheme in _allowed:
        return None
    return f"a selection does not read from {scheme}:// unless --allow {scheme} permits it"


def _is_below(place: str, folder: str) -> bool:
    """Whether a URL is in a folder, by its text."""
    inside = is_url(folder) and place.startswith(folder.rstrip("/") + "/")
    return inside and ".." not in place.split("/")

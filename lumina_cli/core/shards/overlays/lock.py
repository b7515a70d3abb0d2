"""Locks of overlays: one process at a time writes overlays of a name."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.overlays import reader

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an overlay, and of a version
# (shards, name) -> descriptors of the locked folder of the overlay, and of the shards (a shared lock)
_held: dict[tuple[str, str], list[int]] = {}


@contextmanager
def lock_overlay(shards: str, name: str) -> Iterator[None]:
    """Keep other processes from writing overlays of this name during the block.

    Raises:
        UsageError: if the name is invalid.
        LuminaError: if another process is writing such an overlay, or its folder is a link.
    """
    acquire(filesystem.to_text(shards), name)
    try:
        yield
    finally:
        release(filesystem.to_text(shards), name)


def acquire(shards: str, name: str) -> None:
    """Lock the folder of an overlay until `release`; does nothing if this process already holds it, or for a
    URL.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid overlay name; use letters, digits, - and _ only")
    folder = reader.version_folder(shards, name, "")
    if (shards, name) in _held or filesystem.is_url(folder):
        return
    refuse_links(folder + "none")
    filesystem.make_dir(folder)
    found = lock_folder(folder.rstrip("/"))
    numbers = [] if found is None else [found]
    try:
        base = lock_folder(shards, shared=True)  # no process may rewrite the shards meanwhile
    except LuminaError:
        close(numbers)
        raise
    _held[shards, name] = numbers if base is None else [*numbers, base]


def release(shards: str, name: str) -> None:
    """Unlock the folder of an overlay."""
    close(_held.pop((shards, name), []))


def release_all(shards: str) -> None:
    """Unlock the overlays of shards that this process holds, such as those of an interrupted call."""
    for held in [key for key in _held if key[0] == shards]:
        release(*held)


def close(numbers: list[int]) -> None:
    """Close descriptors, which unlocks what they lock."""
    for number in numbers:
        os.close(number)


def refuse_links(folder: str) -> None:
    """Check that nothing would be written through a symbolic link.

    Raises:
        LuminaError: if `find_links` finds one.
    """
    if links := find_links(folder):
        raise LuminaError(
            f"refusing to write to {links[0]}: it is a symbolic link; replace it with a directory"
        )


def find_links(folder: str) -> list[str]:
    """Return which of a version's folder, its overlay's folder and the folder of all overlays are links."""
    parents = [folder, filesystem.parent(folder), filesystem.parent(filesystem.parent(folder))]
    return [] if filesystem.is_url(folder) else [each for each in parents if os.path.islink(each)]

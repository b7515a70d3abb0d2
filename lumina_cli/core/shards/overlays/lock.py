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
_held: dict[tuple[str, str], int] = {}  # (shards, name) -> descriptor of the locked folder of the overlay


@contextmanager
def lock_overlay(shards: str, name: str) -> Iterator[None]:
    """Keep other processes from writing overlays of this name; raises what `begin` raises."""
    acquire(filesystem.to_text(shards), name)
    try:
        yield
    finally:
        release(filesystem.to_text(shards), name)


def acquire(shards: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of an overlay: letters, digits, - and _ only")
    folder = reader.version_folder(shards, name, "")
    if (shards, name) in _held or filesystem.is_url(folder):
        return
    if links := find_links(folder + "none"):
        raise LuminaError(f"{links[0]} is a link: nothing is written there; put a folder in its place")
    filesystem.make_dir(folder)
    number = lock_folder(folder.rstrip("/"))
    if number is not None:
        _held[shards, name] = number


def release(shards: str, name: str) -> None:
    number = _held.pop((shards, name), None)
    if number is not None:
        os.close(number)


def find_links(folder: str) -> list[str]:
    """Return which of the folder of a version, of its overlay and of all overlays are links."""
    parents = [folder, filesystem.parent(folder), filesystem.parent(filesystem.parent(folder))]
    return [] if filesystem.is_url(folder) else [each for each in parents if os.path.islink(each)]

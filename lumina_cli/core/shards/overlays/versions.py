"""Versions of overlays: begin, resume and remove them.

Version numbers are never reused, because NAME@VERSION would otherwise silently refer to other data. The file
overlays/NAME.removed therefore holds the highest number that was removed. After a removal the previous
version is the newest one.
"""

import json
from collections.abc import Iterable, Iterator

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.shards.overlays import reader
from lumina_cli.core.shards.overlays.lock import NAME, acquire, find_links, refuse_links, release
from lumina_cli.core.shards.overlays.reader import DONE
from lumina_cli.core.shards.overlays.writer import BUILDING, Version

REMOVED = ".removed"  # suffix of the file with the highest number of a removed version


def begin_version(shards: str, name: str, settings: dict) -> Version:
    """Return the version of an overlay to write with these settings.

    If the newest version has the same settings it is resumed: shards that are written, and whose samples are
    still the same, stay. Other settings begin the next version. The overlay stays locked until the version is
    finished or the process ends.

    Raises:
        UsageError: if the name is invalid.
        LuminaError: if another process is writing such an overlay, or its folder is a link.
    """
    settings = json.loads(json.dumps(settings))
    shards = filesystem.to_text(shards)
    acquire(shards, name)
    found = reader.list_versions(shards, name)
    if found:
        folder = reader.version_folder(shards, name, found[-1])
        refuse_links(folder)
        done = reader.read_json(filesystem.join(folder, DONE))
        known = done or reader.read_json(filesystem.join(folder, BUILDING)) or {}
        if known.get("settings") == settings:
            if done is None:
                filesystem.remove_partial(folder)
            return Version(shards, name, found[-1], settings, known.get("order", 0))
        if not known:  # killed before it was begun
            filesystem.remove_partial(folder)
            filesystem.remove_dir(folder)
    number = 1 + max(_highest_number(found), _highest_removed(shards, name))
    version = Version(shards, name, f"{number:04d}", settings, _next_order(shards))
    filesystem.make_dir(version.folder)
    building = json.dumps({"order": version.order, "settings": settings}, ensure_ascii=False)
    filesystem.write_file(filesystem.join(version.folder, BUILDING), building.encode())
    return version


def _highest_number(versions: Iterable[str]) -> int:
    return max((int(version) for version in versions if version.isdecimal()), default=0)


def _highest_removed(shards: str, name: str) -> int:
    """Return the highest version number that was removed; 0 if none was."""
    place = _removed_place(shards, name)
    number = (reader.read_json(place) or {}).get("highest")
    return number if type(number) is int else 0


def _removed_place(shards: str, name: str) -> str:
    return "/".join([filesystem.to_text(shards), reader.FOLDER, name + REMOVED])


def _next_order(shards: str) -> int:
    """Return a number greater than the order of every version of every overlay."""
    found = [
        reader.version_folder(shards, name, version)
        for name in reader.list_overlays(shards)
        for version in reader.list_versions(shards, name)
    ]
    infos = (reader.read_json(filesystem.join(each, file)) for each in found for file in (DONE, BUILDING))
    orders = ((info or {}).get("order") for info in infos)
    return 1 + max((order for order in orders if type(order) is int), default=0)


def remove_overlay(shards: str, word: str) -> Iterator[dict]:
    """Delete an overlay NAME, or one version NAME@VERSION; yield a row per version.

    Raises:
        UsageError: if the overlay does not exist.
        LuminaError: if another process is writing it, its folder is a link, or the folder holds other files.
    """
    shards = filesystem.to_text(shards)
    name, sign, version = word.partition("@")
    found = reader.list_versions(shards, name) if NAME.fullmatch(name) else []
    chosen = [each for each in found if not sign or each == version]
    if not chosen or not all(map(NAME.fullmatch, chosen)):
        have = reader.list_overlays(shards)
        have = [*have, *(f"{each}@{one}" for each in have for one in reader.list_versions(shards, each))]
        hint = f"; it has {', '.join(have)}" if have else "; it has no overlays"
        raise UsageError(f"{shards} has no overlay {word!r} to remove{hint}")
    acquire(shards, name)
    try:
        for each in chosen:
            folder = reader.version_folder(shards, name, each)
            files = _files_of_version(folder)
            highest = {"highest": max(_highest_number([each]), _highest_removed(shards, name))}
            filesystem.write_file(_removed_place(shards, name), dump_row(highest).encode())
            filesystem.remove(folder, [DONE])  # first: no reader opens a version without it
            filesystem.remove(folder, files)
            filesystem.remove_dir(folder)
            yield {"overlay": name, "version": each, "removed": True}
    finally:
        release(shards, name)
    if len(chosen) == len(found):
        filesystem.remove_dir(reader.version_folder(shards, name, "").rstrip("/"))


def _files_of_version(folder: str) -> list[str]:
    """Return the names of the files of a version.

    Raises:
        LuminaError: if the folder holds anything else, such as a link or a folder.
    """
    names = list(filesystem.list_sizes(folder))
    strange = find_links(folder) + [each for each in filesystem.list_names(folder) if each not in names]
    if strange:
        raise LuminaError(
            f"not deleting {folder}: it contains {strange[0]}, which is not an overlay file; delete {folder} "
            "yourself"
        )
    return names

"""Versions of overlays: begin, resume and remove them, with numbers that are never reused."""

import json
from collections.abc import Iterable, Iterator

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.shards.overlays import reader
from lumina_cli.core.shards.overlays.lock import NAME, acquire, find_links, release
from lumina_cli.core.shards.overlays.reader import DONE
from lumina_cli.core.shards.overlays.writer import BUILDING, Version

REMOVED = ".removed"  # suffix of the file with the highest number of a removed version


def begin_version(shards: str, name: str, settings: dict) -> Version:
    """Return the version of an overlay that is made with these settings, the newest one or the next.

    No other process writes overlays of this name until it is finished, or this process ends. UsageError for a
    name that is no plain word, LuminaError where another process writes such overlays just now, or where
    their folder is a link to another one.
    """
    settings = json.loads(json.dumps(settings))
    shards = filesystem.to_text(shards)
    acquire(shards, name)
    found = reader.list_versions(shards, name)
    if found:
        folder = reader.version_folder(shards, name, found[-1])
        if links := find_links(folder):
            raise LuminaError(f"{links[0]} is a link: nothing is written there; put a folder in its place")
        done = reader.read_json(filesystem.join(folder, DONE))
        known = done or reader.read_json(filesystem.join(folder, BUILDING)) or {}
        if known.get("settings") == settings:
            if done is None:
                filesystem.remove_partial(folder)
            return Version(shards, name, found[-1], settings, known.get("order", 0))
    number = 1 + max(_highest(found), _removed(shards, name))
    version = Version(shards, name, f"{number:04d}", settings, _next_order(shards))
    filesystem.make_dir(version.folder)
    building = json.dumps({"order": version.order, "settings": settings}, ensure_ascii=False)
    filesystem.write_file(filesystem.join(version.folder, BUILDING), building.encode())
    return version


def _highest(versions: Iterable[str]) -> int:
    return max((int(version) for version in versions if version.isdecimal()), default=0)


def _removed(shards: str, name: str) -> int:
    """Return the highest number of a version that was removed, 0 where none was."""
    place = _removed_place(shards, name)
    number = (reader.read_json(place) or {}).get("highest")
    return number if type(number) is int else 0


def _removed_place(shards: str, name: str) -> str:
    return "/".join([filesystem.to_text(shards), reader.FOLDER, name + REMOVED])


def _next_order(shards: str) -> int:
    """Return a number greater than that of each version of an overlay; those of before had none."""
    found = [
        reader.version_folder(shards, name, version)
        for name in reader.list_overlays(shards)
        for version in reader.list_versions(shards, name)
    ]
    infos = (reader.read_json(filesystem.join(each, file)) for each in found for file in (DONE, BUILDING))
    orders = ((info or {}).get("order") for info in infos)
    return 1 + max((order for order in orders if type(order) is int), default=0)


def remove_overlay(shards: str, word: str) -> Iterator[dict]:
    """Delete an overlay NAME, or one version of it, NAME@VERSION; yield a row for each version.

    UsageError where there is none of that name. LuminaError where another process writes it, or where its
    folder is a link or holds what is no file of an overlay.
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
            highest = {"highest": max(_highest([each]), _removed(shards, name))}
            filesystem.write_file(_removed_place(shards, name), dump_row(highest).encode())
            filesystem.remove(
                folder, [DONE]
            )  # first: without it the version is not whole, and nobody reads it
            filesystem.remove(folder, files)
            filesystem.remove_dir(folder)
            yield {"overlay": name, "version": each, "removed": True}
    finally:
        release(shards, name)
    if len(chosen) == len(found):
        filesystem.remove_dir(reader.version_folder(shards, name, "").rstrip("/"))


def _files_of_version(folder: str) -> list[str]:
    """Return the names of the files of a version; LuminaError where more is there than was written."""
    names = list(filesystem.list_sizes(folder))
    strange = find_links(folder) + [each for each in filesystem.list_names(folder) if each not in names]
    if strange:
        raise LuminaError(f"{folder} stays: {strange[0]} is no file of an overlay; delete it by hand")
    return names

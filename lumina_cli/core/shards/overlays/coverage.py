"""Counts of samples without values of an overlay, because an update added or changed their images."""

import os
from collections.abc import Iterator

from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.reader import (
    DONE,
    MEASURED,
    Overlay,
    find_overlays,
    folder_of_shards,
    list_overlays,
    newest_version,
    split_source,
)
from lumina_cli.core.shards.reader import TOTALS, open_shards
from lumina_cli.core.shards.selection import is_selection, selected_keys, selected_shards
from lumina_cli.core.shards.tar import read_index

LATENTS, TEXT = "latents-", "text-"  # prefixes of the names of overlays of `lumina shard encode`


def describe_missing(source: str | os.PathLike, encodings: bool = False) -> str | None:
    """Return a message about the samples of a SOURCE of shards without values of its overlays, or None.

    encodings  also consider latents and text features, which training reads

    Only shards that were modified after an overlay was written are considered, so that values of a part of
    the samples are not reported.

    Raises:
        LuminaError: if the shards cannot be read.
    """
    bare, wanted = split_source(source)
    if not bare.endswith(".tar") and not filesystem.is_dir(bare):
        return None
    chosen = selected_keys(bare) if is_selection(bare) else None
    shards = selected_shards(bare) if chosen is not None else bare
    folder = folder_of_shards(shards)
    overlays = [each for each in _overlays(folder, wanted, encodings) if not _is_current(each)]
    if not overlays:
        return None
    missing: dict[Overlay, int] = dict.fromkeys(overlays, 0)
    samples = total = 0
    for tar in open_shards(shards):
        entries = read_index(tar)
        keys = {entry["key"] for entry in entries}
        keys = keys if chosen is None else keys & chosen.get(filesystem.basename(tar), frozenset())
        without = {
            each: keys - each.open(tar, entries).keys() for each in overlays if not each.matches(tar, entries)
        }
        for each, found in without.items():
            missing[each] += len(found)
        samples, total = samples + len(set().union(*without.values())), total + len(keys)
    stale = [each for each, count in missing.items() if count]
    if not stale:
        return None
    names = ", ".join(f"{each.name}@{each.version}" for each in stale)
    ours = encodings and any(each.name.startswith((LATENTS, TEXT)) for each in stale)
    return (
        f"{samples} of {total} samples of {bare} have no values of {names} in shards with new or "
        f"changed images; compute them with {', '.join(map(computing_command, stale))}"
        + "; training encodes what is missing"
        * ours
    )


def computing_command(overlay: Overlay) -> str:
    """Return the command that computes the missing values of an overlay, for messages."""
    name, settings = overlay.name, overlay.info.get("settings") or {}
    if name == MEASURED:
        scores = ",".join(settings.get("scores") or ())
        return f"`lumina shard score {overlay.shards}{f' --scores {scores}' if scores else ''}`"
    if name.startswith(LATENTS):
        return f"`lumina shard encode {overlay.shards} --size {name.removeprefix(LATENTS)} --model MODEL`"
    if name.startswith(TEXT):
        system = name.removeprefix(TEXT)
        return f"`lumina shard encode {overlay.shards} --what text --system {system} --model MODEL`"
    return f"`lumina shard overlay {overlay.shards} ROWS --name {name} --add`"


def _overlays(folder: str, wanted: list[str] | None, encodings: bool) -> Iterator[Overlay]:
    yield from find_overlays(folder, wanted)
    for name in list_overlays(folder) if encodings else ():
        newest = newest_version(folder, name) if name.startswith((LATENTS, TEXT)) else None
        if newest:
            yield newest


def _is_current(overlay: Overlay) -> bool:
    """Return whether the shards were not modified after the overlay was written."""
    totals = filesystem.join(overlay.shards, TOTALS)
    if not filesystem.is_file(totals):
        return False
    return _is_newer(filesystem.join(overlay.folder, DONE), totals)


def _is_newer(place: str, other: str) -> bool:
    """Return whether an existing file was modified after another one; False if its store has no times."""
    times = []
    for each in (place, other):
        if not filesystem.is_url(each):
            times.append(os.stat(each).st_mtime)
            continue
        system, path = filesystem.open_filesystem(each)
        try:
            with filesystem.remote_errors(each, "read"):
                times.append(system.modified(path).timestamp())
        except NotImplementedError:
            return False
    return times[0] > times[1]

"""Applying overlays to the rows of shards, also after the shards were updated.

Values are found by key and image. So after an update of the shards, samples with the same image keep their
values, and samples with a new or changed image have none (shards/overlays/coverage.py counts them).
"""

from collections.abc import Callable

from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.reader import (
    Overlay,
    find_overlays,
    folder_of_shards,
    merge,
    read_json,
    split_source,
)
from lumina_cli.core.shards.tar import find_tars, read_index

Add = Callable[[dict, dict], dict]  # (line of an index, its row) -> the row with overlays applied


class OverlayJoiner:
    """Applies overlays to the rows of shards, tar by tar.

    With `strict`, an overlay of other shards is an error; otherwise it does not have any values.
    """

    def __init__(self, overlays: list[Overlay], strict: bool = True):
        self.overlays = overlays
        self.known = set() if strict else set(overlays)  # overlays that belong to their shards

    def open(self, tar: str, entries: list[dict]) -> Add:
        """Return a function that applies the overlays to a row of `tar`.

        Raises:
            LuminaError: if an overlay was written for other shards.
        """
        parts = [(each, each.parts(tar, self._lines(each, tar, entries))) for each in self.overlays]

        def add(entry: dict, row: dict) -> dict:
            for overlay, part_of in parts:
                part = part_of(entry["key"])
                row = merge(row, part)
                if "captions" in part:
                    by = f"{overlay.name}@{overlay.version}"
                    get_captions(row, f"{tar}#{entry['key']} with the overlay {by}")
            return row

        return add

    def _lines(self, overlay: Overlay, tar: str, entries: list[dict]) -> dict[str, dict]:
        lines = overlay.open(tar, entries)
        if overlay not in self.known:
            if not lines and not belongs_to_shards(overlay):
                raise overlay.mismatch(tar)
            self.known.add(overlay)
        return lines


def open_joiner(source: str) -> tuple[str, OverlayJoiner]:
    """Return (location without overlays, joiner of the overlays) of a SOURCE of shards."""
    shards, wanted = split_source(source)
    return shards, OverlayJoiner(find_overlays(folder_of_shards(shards), wanted))


def belongs_to_shards(overlay: Overlay) -> bool:
    """Return whether an overlay was written for its shards, or for an earlier state of them.

    If none of its values is of an image in the shards, then an update must have replaced or removed images.
    """
    if not overlay.info.get("samples"):
        return True
    for tar in find_tars(overlay.shards):
        entries = read_index(tar)
        if overlay.open(tar, entries) or overlay.matches(tar, entries):
            return True
    return bool((read_json(filesystem.join(overlay.shards, "shards.json")) or {}).get("edits"))

"""The journal of a folder of shards while it is written: which shards are complete, and their rows.

    journal/settings.json    the settings that the shards depend on
    journal/000000.json      the note of a shard, written after its files: shard (its number), samples, bytes,
                             index [sha256, bytes], scores (names), rows and files (digests), rejects

A shard with a note is complete. The journal is removed after shards.json is written; a finished folder is
changed by shards/update/.

Notes are separate files because object stores cannot append, and because workers then need no lock. They are
not synced to disk: after a power failure a file may be shorter than its note states, and `Journal.read` then
treats the shard as missing, so it is written again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import png_bytes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import is_in_memory, parse_row
from lumina_cli.core.secrets import mask_url
from lumina_cli.core.shards.image_ref import DeferredImage, ImageFile, image_ref
from lumina_cli.core.shards.reader import TOTALS, dump_totals, is_own_file, read_totals
from lumina_cli.core.shards.tar import index_path

_SETTINGS = "settings.json"
VERSION = 1  # of the bytes that are written; a folder of another version is never resumed


class Journal:
    """The journal of the folder `dest`."""

    def __init__(self, dest: str):
        self.dest, self.folder = dest, filesystem.join(dest, "journal")

    def clear(self) -> None:
        """Remove all shards of the folder, in an order in which a kill leaves an unfinished folder."""
        filesystem.make_dir(self.folder)
        self._write_settings({})
        ours = [name for name in filesystem.list_sizes(self.dest) if is_own_file(name)]
        filesystem.remove(self.dest, [TOTALS] if TOTALS in ours else [])
        filesystem.remove(self.dest, [name for name in ours if name != TOTALS])
        self.remove()

    def begin(self, settings: dict, notify: Callable[[str], None]) -> dict | None:
        """Return the content of shards.json if the folder is finished; otherwise open the journal.

        An unfinished run without a complete shard, or over the same source with other settings, is replaced;
        `notify` receives a message about the latter.

        Raises:
            UsageError: if the folder holds shards of other settings, or of a run that cannot be resumed.
        """
        totals = read_totals(self.dest)
        if totals is not None:
            self.check_finished(totals, settings)
            return totals
        place = filesystem.join(self.folder, _SETTINGS)
        if filesystem.is_file(place):
            known = self._read_settings(place)
            difference = _difference(known, settings)
            if difference and self.finished_shards():
                if known.get("source", ...) != settings.get("source"):
                    raise self.conflict(f"holds an unfinished run with different settings ({difference})")
                notify(f"{self.dest}: an unfinished run with different settings ({difference}) is replaced")
            if difference:
                self.clear()
                self._write_settings(settings)
        elif any(is_own_file(name) for name in filesystem.list_sizes(self.dest)):
            raise self.conflict("holds shards of an unfinished run without a journal")
        else:
            self._write_settings(settings)
        filesystem.remove_partial(self.dest)
        filesystem.remove_partial(self.folder)
        return None

    def check_finished(self, totals: dict, settings: dict) -> None:
        """Check that a finished folder can be updated with these settings.

        Raises:
            UsageError: if not. Another source is possible: its rows are compared with the samples.
        """
        if "input" not in totals:
            raise self.conflict("holds shards without a record of their input")
        known = totals.get("settings") or {}
        if difference := _difference(known | {"source": None}, settings | {"source": None}):
            raise self.conflict(f"holds shards written with different settings ({difference})")

    def _read_settings(self, place: str) -> dict:
        """Return the settings of an unfinished run; {} if a power failure cut them off."""
        try:
            return parse_row(filesystem.read_file(place).decode(errors="replace").strip(), place)
        except LuminaError:
            return {}

    def _write_settings(self, settings: dict) -> None:
        place = filesystem.join(self.folder, _SETTINGS)
        filesystem.write_file(place, dump_totals(settings), False)

    def conflict(self, why: str) -> UsageError:
        """Return the error for a folder that this run cannot resume."""
        return UsageError(f"{self.dest} {why}; use --force to replace them")

    def finished_shards(self) -> list[int]:
        """Return the numbers of the complete shards, in order."""
        names = (
            name.removesuffix(".json") for name in filesystem.list_sizes(self.folder) if name != _SETTINGS
        )
        return sorted(int(name) for name in names if name.isdecimal())

    def read(self, number: int) -> dict:
        """Return the note of a shard; {} if the note, or one of the files of the shard, is incomplete."""
        place = filesystem.join(self.folder, f"{number:06d}.json")
        try:
            note = parse_row(filesystem.read_file(place).decode(errors="replace").strip(), place)
            tar = filesystem.join(self.dest, f"{number:06d}.tar")
            sizes = {tar: note["bytes"], index_path(tar): note["index"][1]} if note["samples"] else {}
            whole = all(filesystem.file_size(name) == size for name, size in sizes.items())
        except (
            LuminaError,
            OSError,
            LookupError,
            TypeError,
        ):  # a power failure, or a deleted file
            return {}
        return note if whole else {}

    def write(self, note: dict) -> None:
        """Write the note of a complete shard."""
        data = json.dumps(note, ensure_ascii=True).encode() + b"\n"
        filesystem.write_file(filesystem.join(self.folder, f"{note['shard']:06d}.json"), data, durable=False)

    def drop(self, numbers: list[int]) -> None:
        """Remove shards of an unfinished run, each note first."""
        filesystem.remove(self.folder, [f"{number:06d}.json" for number in numbers])
        tars = [f"{number:06d}.tar" for number in numbers]
        filesystem.remove(self.dest, [name for tar in tars for name in (tar, index_path(tar))])

    def rejects(self, numbers: list[int]) -> Iterator[dict]:
        """Yield the rejected rows of these shards, in order."""
        for number in numbers:
            yield from self.read(number)["rejects"]

    def remove(self) -> None:
        """Remove the journal, its settings last."""
        names = [name for name in filesystem.list_sizes(self.folder) if name != _SETTINGS]
        filesystem.remove(self.folder, [*names, _SETTINGS] if filesystem.list_sizes(self.folder) else [])
        filesystem.remove_dir(self.folder)
        filesystem.remove_partial(self.dest)


def _difference(known: dict, settings: dict) -> str:
    """Describe how stored settings differ from those of this run: "per_shard 1000, not 500"; "" if not."""
    if isinstance(known.get("source"), str):  # earlier versions stored the password of a URL
        known = known | {"source": mask_url(known["source"])}
    names = [name for name in sorted(known.keys() | settings.keys()) if known.get(name) != settings.get(name)]
    return "; ".join(f"{name} {known.get(name)}, not {settings.get(name)}" for name in names)


def check_number(number: int) -> None:
    """Check that a shard number fits into six digits.

    Raises:
        LuminaError: if it does not.
    """
    if number > 999_999:
        raise LuminaError("more than a million shards; raise --per-shard to put more samples in each")


def encode_images(rows: list[dict]) -> list[dict]:
    """Return rows with PIL images replaced by PNG bytes, the form in which other processes send them.

    Deferred images are made.
    """
    deferred = [row["image"] for row in rows if isinstance(row.get("image"), DeferredImage)]
    if deferred:
        made = iter(deferred[0].make_all(deferred))
        rows = [row | next(made) if isinstance(row.get("image"), DeferredImage) else row for row in rows]
    return [
        row | {"image": png_bytes(row["image"].convert("RGB"))}
        if isinstance(row.get("image"), Image.Image)
        else row
        for row in rows
    ]


def digest_rows(rows: list[dict]) -> list[str]:
    """Return two hashes of rows: of their content, and of the sizes and dates of the local files they name.

    The first one decides whether a run covers the same rows; the second one is a cheap hint that a file may
    have changed (see `check_changed_files`).
    """
    content, files = hashlib.sha256(), hashlib.sha256()
    for row in rows:
        content.update(_row_bytes(row))
        files.update(_file_state(row.get("image")))
    return [content.hexdigest(), files.hexdigest()]


def _row_bytes(row: dict) -> bytes:
    """Return bytes that identify the content of a row; values in memory enter by their hash."""
    memory = {name: value for name, value in row.items() if is_in_memory(value)}
    rest = {name: value for name, value in row.items() if name not in memory} if memory else row
    try:
        text = json.dumps(rest, default=str, skipkeys=True).encode()
    except (ValueError, RecursionError):
        text = repr((row.get("key"), str(row.get("image")), list(row))).encode()
    for name, value in memory.items():
        data = value.tobytes() if hasattr(value, "getpixel") else bytes(value)
        text += f"{name} {getattr(value, 'size', '')}".encode() + hashlib.sha256(data).digest()
    return text + b"\n"


def _file_state(image: Any) -> bytes:
    ref = image_ref(image)
    path = ref.local_path if isinstance(ref, ImageFile) else None
    if path is None:
        return b"-"
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b"gone"
    return b"%d %d\n" % (status.st_size, status.st_mtime_ns)

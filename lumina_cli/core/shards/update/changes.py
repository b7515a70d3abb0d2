"""What differs between a row of the input and the sample that was packed from it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.ingest import ingest_image
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import get_error, parse_row, to_json_value
from lumina_cli.core.shards.image_ref import ImageFile, MemoryImage, find_member, image_ref
from lumina_cli.core.shards.journal import digest_rows
from lumina_cli.core.shards.sample import ShardSettings, dump_line, is_truth, read_truth, stored_row
from lumina_cli.core.shards.tar import TRUTH, RejectedImage, TarImage, read_span
from lumina_cli.core.shards.update.samples import PackedSample


@dataclass(frozen=True)
class RowChange:
    """A sample to replace.

    key      of the sample
    number   of the row in the input
    row      the row that replaces it
    image    whether its image must be read again; otherwise it is copied from the shard
    origin   the file that it is from
    """

    key: str
    number: int
    row: dict
    image: bool
    origin: str | None

    def digest(self) -> str:
        """Return a text that identifies the change."""
        parts = [self.key, self.number, *digest_rows([self.row]), self.image, self.origin]
        return " ".join(map(str, parts))


class RowComparison:
    """Compares rows with the samples of a folder `dest`."""

    def __init__(self, dest: str, making: ShardSettings):
        self.dest, self.making = dest, making
        self.dates: dict[int, int | None] = {}

    def compare(self, number: int, row: dict, sample: PackedSample) -> RowChange | None:
        """Return what must be replaced for row `number` of the input, or None if nothing has changed."""
        entry, origin = sample.entry, sample.entry.get("origin")
        given = image_ref(row.get("image")).origin
        invalid = bool(get_error(row)) or isinstance(row.get("image"), RejectedImage)
        image = invalid or (not sample.moved and self.is_new_image(row, sample.shard, entry))
        if not image and sample.same and self._same_truth(row, sample):
            return None
        return RowChange(entry["key"], number, row, image, given if sample.moved else origin)

    def same_row(self, row: dict, entry: dict) -> bool:
        """Whether a row has the fields that its sample stores."""
        try:
            kept = stored_row(row, entry["key"], entry["width"], entry["height"], entry.get("origin"))
            return entry.get("row_sha256") in (None, hashlib.sha256(dump_line(kept)).hexdigest())
        except (RecursionError, ValueError):
            return False

    def same_image(self, row: dict, entry: dict) -> bool:
        """Whether the image of a row has the content of a sample's image; the image is read."""
        try:
            return not get_error(row) and content_of(row, self.making) == entry.get("sha256")
        except LuminaError:
            return False

    def is_new_image(self, row: dict, shard: int, entry: dict) -> bool:
        """Whether the image of a row is not the one that was packed; see `is_changed_file` for its limits."""
        ref = image_ref(row.get("image"))
        if isinstance(ref, MemoryImage):
            return not self.same_image(row, entry)
        return is_changed_file(row, entry, lambda: self._date(shard), self.making)

    def _date(self, shard: int) -> int | None:
        if shard not in self.dates:
            self.dates[shard] = date_of(filesystem.join(self.dest, f"{shard:06d}.tar"))
        return self.dates[shard]

    def changed_fields(self, row: dict, sample: PackedSample) -> list[str]:
        """Return the names of the fields of a row that differ from its sample."""
        entry, tar = sample.entry, filesystem.join(self.dest, f"{sample.shard:06d}.tar")
        text = read_span(tar, *entry["row"], f"{entry['key']}.json")
        known = parse_row(text.decode(errors="replace"), f"{tar}#{entry['key']}.json")
        new = stored_row(row, entry["key"], entry["width"], entry["height"], entry.get("origin"))
        fields = [name for name in new | known if to_json_value(new.get(name)) != known.get(name)]
        return fields + [name for name in TRUTH if is_truth(row.get(name)) or entry.get(name)][: not fields]

    def _same_truth(self, row: dict, sample: PackedSample) -> bool:
        """Whether the ground truth images of a row are those of its sample."""
        names = {name for name in TRUTH if is_truth(row.get(name))}
        if names != {name for name in TRUTH if sample.entry.get(name)}:
            return False
        tar = filesystem.join(self.dest, f"{sample.shard:06d}.tar")
        return all(
            read_span(tar, *sample.entry[name], name) == data for name, data in read_truth(row).items()
        )


def is_changed_file(
    row: dict,
    entry: dict,
    written: Callable[[], int | None],
    making: ShardSettings,
    every: bool = False,
) -> bool:
    """Whether the image file of a row has other content than a sample.

    Reading and hashing every file would cost as much as packing, so a file is read only if it is newer than
    `written()`, the date of the shard in nanoseconds, or has another size than the bytes copied from it, or,
    with `every`, in any case. Not detected: an older file of the same size in the place of a packed one, a
    deleted file, and changes behind a URL.
    """
    found = _file_of(row)
    if found is None or "sha256" not in entry:
        return False
    size, date = found
    copied = "encoded" not in entry.get("notes", ())
    newer = every or (copied and size is not None and size != entry["length"])
    if not newer and date is not None:
        known = written()
        newer = known is not None and date > known
    if not newer:
        return False
    try:
        return content_of(row, making) != entry["sha256"]
    except LuminaError:
        return True


def _file_of(row: dict) -> tuple[int | None, int | None] | None:
    """Return the (size, date) of the image file of a row, as far as known; None if it does not exist."""
    ref = image_ref(row.get("image"))
    try:
        if isinstance(ref, ImageFile) and ".tar#" in ref.origin and not os.path.isfile(ref.origin):
            ref = find_member(*ref.origin.rsplit("#", 1))
        if isinstance(ref, TarImage):
            return ref.length, date_of(ref.tar)
        path = ref.local_path if isinstance(ref, ImageFile) else None
        if path is None:
            return None
        status = os.stat(path)
    except (OSError, ValueError, LuminaError):
        return None
    return status.st_size, status.st_mtime_ns


def content_of(row: dict, making: ShardSettings) -> str:
    """Return the hash of the bytes that a shard would hold of the image of a row.

    Raises:
        LuminaError: if the image cannot be used.
    """
    ref = image_ref(row.get("image"))
    data = ref.read()
    if making.full or making.encode:
        data = ingest_image(data, ref.origin or "the image in memory", making.full, making.encode).data
    return hashlib.sha256(data).hexdigest()


def date_of(place: str) -> int | None:
    """Return the date of a file in nanoseconds; None if the file or its date does not exist."""
    try:
        if not filesystem.is_url(place):
            return os.stat(place).st_mtime_ns
        system, path = filesystem.open_filesystem(place)
        return int(system.modified(path).timestamp() * 1e9)
    except (OSError, NotImplementedError, AttributeError):
        return None


def raise_invalid(row: dict) -> None:
    """Raise the error of a row that an earlier command rejected.

    Raises:
        InvalidImage: if the row has an error, or no usable image.
    """
    if reason := get_error(row):
        raise InvalidImage(reason)
    ref = image_ref(row.get("image"))
    if isinstance(ref, RejectedImage):
        ref.read()

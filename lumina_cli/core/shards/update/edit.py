"""Work items of an update: each one rewrites one shard, or writes a new one, independently of the others.

The result is staged (update/commit.py). Samples that did not change are copied from the shard, byte for byte,
so their files need not exist any more.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.ingest import IngestedImage, ingest_image
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.journal import digest_rows
from lumina_cli.core.shards.sample import (
    Sample,
    ShardSettings,
    build_sample,
    check_captions,
    fetch_image,
    make_reject,
    make_samples,
    read_truth,
)
from lumina_cli.core.shards.tar import TRUTH, TarImage, read_span
from lumina_cli.core.shards.update.changes import RowChange, raise_invalid
from lumina_cli.core.shards.update.commit import Staging
from lumina_cli.core.shards.update.samples import shard_index
from lumina_cli.core.shards.writer import write_tar


@dataclass(frozen=True)
class ShardEdit:
    """Shard `number` of `dest` after an update; cheap to pickle.

    base        sha256 of the index of the shard before, None for a new shard
    removed     keys of samples to leave out
    changed     samples to replace
    added       (number in the input, row) of new samples
    keep_lost   keep a sample whose new row cannot be used
    """

    dest: str
    number: int
    making: ShardSettings
    base: str | None = None
    removed: tuple[str, ...] = ()
    changed: tuple[RowChange, ...] = ()
    added: tuple[tuple[int, dict], ...] = ()
    keep_lost: bool = False

    @property
    def resets_overlays(self) -> bool:
        """Whether overlays of the shard no longer belong to its images."""
        return bool(self.removed or self.added or any(each.image for each in self.changed))

    def digest(self) -> str:
        """Return 16 hex digits that identify the edit: what it changes, and the state of the files."""
        added = digest_rows([row for _, row in self.added])
        numbers = [number for number, _ in self.added]
        parts = [self.base, self.removed, [each.digest() for each in self.changed], added, numbers]
        text = json.dumps([*parts, self.keep_lost])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_edit(edit: ShardEdit) -> dict:
    """Stage a shard unless an interrupted run did; return its note.

    The note holds shard, samples, bytes, index, scores, rejects, and "lost": the names of samples whose new
    row cannot be used.
    """
    staging, digest = Staging(edit.dest), edit.digest()
    note = staging.read(edit.number, digest)
    if note is None:
        note = _write_edit(edit, staging) | {"edit": digest}
        staging.write(note)
    return note


def _write_edit(edit: ShardEdit, staging: Staging) -> dict:
    rejects: list[dict] = []
    lost: list[str] = []
    samples = _edited_samples(edit, rejects, lost)
    note: dict = {"shard": edit.number, "samples": 0, "bytes": 0, "index": None, "scores": []}
    first = next(samples, None)
    if first is not None:
        # durable: the shard that it replaces is removed as soon as all are staged
        note |= write_tar(staging.tar(edit.number), chain([first], samples), edit.making, durable=True)
    return note | {"rejects": rejects, "lost": lost}


def _edited_samples(edit: ShardEdit, rejects: list[dict], lost: list[str]) -> Iterator[Sample]:
    """Yield the samples of a shard in their old order, then the new ones; `rejects` and `lost` are filled."""
    tar = filesystem.join(edit.dest, f"{edit.number:06d}.tar")
    entries = shard_index(edit.dest, edit.number) if edit.base else []
    changed = {each.key: each for each in edit.changed}
    keys = {entry["key"]: 1 for entry in entries if entry["key"] not in edit.removed}
    for entry in entries:
        if entry["key"] in edit.removed:
            continue
        change = changed.get(entry["key"])
        try:
            yield copy_sample(tar, entry) if change is None else _new_sample(edit, tar, entry, change)
        except LuminaError as error:
            if change is None:
                raise
            lost.append(f"{change.origin or change.key}: {error}")
            if edit.keep_lost:
                yield copy_sample(tar, entry)
            else:
                rejects.append(make_reject(change.number, change.row, error))
    yield from make_samples(edit.added, keys, edit.making, rejects)


def copy_sample(tar: str, entry: dict) -> Sample:
    """Return a sample as it is stored."""
    line = read_span(tar, *entry["row"], f"{entry['key']}.json")
    return Sample(entry["key"], stored_image(tar, entry), _stored_truth(tar, entry), {}, line, entry)


def stored_image(tar: str, entry: dict) -> IngestedImage:
    """Return the image of a sample as it is stored.

    Raises:
        LuminaError: if the shard is damaged.
    """
    data = TarImage(tar, entry["image"], entry["offset"], entry["length"]).read()
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise LuminaError(
            f"checksum mismatch: {tar}#{entry['image']} was modified after it was written; use --force to "
            "rewrite all shards"
        )
    suffix = entry["image"].rpartition(".")[2]
    return IngestedImage(data, suffix, entry["width"], entry["height"], tuple(entry.get("notes", ())))


def _stored_truth(tar: str, entry: dict) -> dict[str, bytes]:
    return {name: read_span(tar, *entry[name], name) for name in TRUTH if entry.get(name)}


def _new_sample(edit: ShardEdit, tar: str, entry: dict, change: RowChange) -> Sample:
    """Return the sample that replaces another one.

    Raises:
        LuminaError: if its row cannot be used.
    """
    row, making = change.row, edit.making
    raise_invalid(row)
    if change.image:
        data = fetch_image(row)
        if isinstance(data, LuminaError):
            raise data
        name = image_ref(row.get("image")).origin or "the image in memory"
        image = ingest_image(data, name, making.full, making.encode)
    else:
        image = stored_image(tar, entry)
    truth = read_truth(row)
    check_captions(row)
    return build_sample(row, entry["key"], image, truth, change.origin)

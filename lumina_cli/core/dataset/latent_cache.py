"""Latent cache of a source: the latents of its images at one size, encoded once, with their captions.

A cache folder contains latents.bin (float16, one image after another), rows.jsonl (captions, score and latent
shape of each image), rejects.jsonl (rows whose image cannot be read) and progress.json. progress.json is
written after each chunk and records the sizes and checksums of the other files. What they contain beyond
these sizes is a chunk that an interruption cut short: it is truncated, and the build continues from there. A
damaged cache is built again.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.dataset.cache_check import FILES, discard_cache, find_cache_damage, read_progress
from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.images.buckets import best_size, crop_image
from lumina_cli.core.io.atomic import atomic_write, disk_errors, locked_folder
from lumina_cli.core.io.jsonl import dump_row, get_captions
from lumina_cli.core.shards.tar import TarImage
from lumina_cli.core.sources.source import open_row_image

CHUNK = 64  # images encoded together
MAX_BAD_RATE = 0.05
EMPTY = {"rows": 0, "row_bytes": 0, "latent_bytes": 0, "rejects": 0, "reject_bytes": 0, "done": False}
EMPTY |= {"ready": 0}  # rows with precomputed latents
Encode = Callable[[Tensor], Tensor]
LatentsBySize = dict[int, Tensor]  # size in pixels -> latents (C, H, W)
FindLatents = Callable[[dict], LatentsBySize]
# An image and its precomputed latents; None instead of the image if latents of all sizes are precomputed.
OpenedImage = tuple[Image.Image | None, LatentsBySize]


class _Writer:
    """Appends chunks to a cache folder; opening it truncates the files after the last complete chunk."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.progress = EMPTY | (read_progress(folder) or {})
        # a cache that an earlier release began has no checksums, and gets none
        started = self.progress["rows"] or self.progress["rejects"]
        self.checksums = self.progress.get("crc") or ({} if started else dict.fromkeys(FILES, 0))

    def consumed(self) -> int:
        """Return the number of rows of the source that are done, including rejects."""
        return self.progress["rows"] + self.progress["rejects"]

    def open(self, stack: ExitStack) -> None:
        """Open the files for writing after the last complete chunk."""
        self.files = {}
        for name, size in FILES.items():
            path = self.folder / name
            path.touch()
            file = stack.enter_context(path.open("r+b"))
            file.truncate(self.progress[size])
            file.seek(self.progress[size])
            self.files[name] = file

    def add(self, rows: list[dict], images: list[OpenedImage], rejects: list[dict], encode: Encode) -> None:
        """Write the latents of the images of `rows` at this size; encode those that are not precomputed."""
        latents = [precomputed.get(self.size) for _, precomputed in images]
        missing = [i for i, latent in enumerate(latents) if latent is None]
        encoded = encode_images([images[i][0] for i in missing], self.size, encode)
        for i, latent in zip(missing, encoded, strict=True):
            latents[i] = latent
        for row, latent in zip(rows, latents, strict=True):
            values = latent.to(torch.float16).numpy().tobytes()
            kept = {"captions": get_captions(row), "score": row.get("score"), "shape": list(latent.shape)}
            kept["crc"] = zlib.crc32(values)
            if isinstance(row["image"], TarImage):  # locates the overlays of its shard
                kept["image"] = str(row["image"])
            self._write("rows.jsonl", dump_row(kept).encode() + b"\n")
            self._write("latents.bin", values)
        for reject in rejects:
            self._write("rejects.jsonl", dump_row(reject).encode() + b"\n")
        rejected = self.progress["rejects"] + len(rejects)
        precomputed = self.progress["ready"] + len(rows) - len(missing)
        self.record(rows=self.progress["rows"] + len(rows), rejects=rejected, ready=precomputed)

    def _write(self, name: str, data: bytes) -> None:
        self.files[name].write(data)
        if self.checksums:
            self.checksums[name] = zlib.crc32(data, self.checksums[name])

    def record(self, **changes) -> None:
        """Record in progress.json that what was written so far is complete."""
        for file in self.files.values():
            file.flush()
        sizes = {size: self.files[name].tell() for name, size in FILES.items()}
        self.progress |= sizes | changes
        self.progress |= {"crc": self.checksums} if self.checksums else {}
        with atomic_write(self.folder / "progress.json") as aside:
            aside.write_text(json.dumps(self.progress), encoding="utf-8")


def build_stores(
    rows: Iterable[dict],
    folders: dict[int, Path],
    encode: Encode,
    max_bad_rate: float = MAX_BAD_RATE,
    find: FindLatents | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[int]:
    """Encode the images of `rows` in one pass, at each size that is not cached; yield the rows done so far.

    folders       size in pixels -> cache folder
    encode        maps pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)
    max_bad_rate  fraction of the images that may be unreadable; they are recorded in rejects.jsonl
    find          returns the precomputed latents of a row by size; an image is opened only if one is missing
    note          receives one line about each damaged cache folder, which is built again

    Raises:
        LuminaError: if a row has no captions, if `rows` is empty, or if another process builds such a folder.
        TooManyRejects: at the end, if more than `max_bad_rate` of the images, or all of them, are unreadable.
    """
    damaged = {folder: reason for folder in folders.values() if (reason := find_cache_damage(folder))}
    sizes = [size for size, folder in folders.items() if folder in damaged or not is_complete(folder)]
    if not sizes:
        return
    with ExitStack() as stack:
        for size in sizes:
            with disk_errors(folders[size]):
                folders[size].mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(str(folders[size])))
        for folder, reason in damaged.items():
            discard_cache(folder)
            note(f"latent cache {folder} is damaged ({reason}): building it again")
        writers = [_Writer(folders[size], size) for size in sizes]
        yield from _build(writers, rows, encode, max_bad_rate, find)


def _build(
    writers: list[_Writer],
    rows: Iterable[dict],
    encode: Encode,
    max_bad_rate: float,
    find: FindLatents | None,
) -> Iterator[int]:
    """Encode the images of `rows` for each writer; yield the rows done so far."""
    # Sizes may have stopped at different rows: begin at the first one, and skip it for sizes that are ahead.
    done = min(writer.consumed() for writer in writers)
    rows = islice(rows, done, None)
    with disk_errors(writers[0].folder), ExitStack() as stack:
        for writer in writers:
            writer.open(stack)
        while chunk := next_chunk(rows, done, writers):
            check_captions(chunk, done)
            good, images, rejects = open_images(chunk, done, find, {writer.size for writer in writers})
            for writer in writers:
                if writer.consumed() == done:
                    writer.add(good, images, rejects, encode)
            done += len(chunk)
            yield done
        if not done:
            raise LuminaError("the data has no rows")
        check_rejects(writers[0].progress["rejects"], done, max_bad_rate, writers[0].folder)
        for writer in writers:
            writer.record(done=True)


def next_chunk(rows: Iterator[dict], done: int, writers: list[_Writer]) -> list[dict]:
    """Return the next rows after the first `done`, at most CHUNK.

    A chunk ends where a writer that is ahead resumes, so that each writer takes whole chunks or none of them.
    """
    ahead = [writer.consumed() - done for writer in writers if writer.consumed() > done]
    return list(islice(rows, min([CHUNK, *ahead])))


def check_rejects(rejected: int, done: int, max_bad_rate: float, folder: Path) -> None:
    """Check the number of unreadable images among the first `done`.

    Raises:
        TooManyRejects: if it is more than `max_bad_rate` of them, or all of them.
    """
    why = f"see {folder / 'rejects.jsonl'} for the reasons"
    if rejected > max_bad_rate * done:
        bad = f"{rejected} of {done} images cannot be used"
        raise TooManyRejects(f"{bad}, more than max_bad_rate={max_bad_rate:g} allows; {why}")
    if rejected == done:
        raise TooManyRejects(f"none of {done} images can be used; {why}")


def open_images(
    rows: list[dict], before: int, find: FindLatents | None = None, sizes: Iterable[int] = ()
) -> tuple[list[dict], list[OpenedImage], list[dict]]:
    """Return the rows with readable images, these images, and a reject with the reason for each other row.

    `before` is the number of earlier rows. An image is not opened if `find` returns its latents at all
    `sizes`.
    """
    good, images, rejects = [], [], []
    for number, row in enumerate(rows, before + 1):
        try:
            precomputed = find(row) if find else {}
            whole = bool(precomputed) and all(size in precomputed for size in sizes)
            images.append((None if whole else open_row_image(row), precomputed))
        except LuminaError as error:
            named = {"row": number, "key": row.get("key"), "image": row.get("image"), "reason": str(error)}
            rejects.append(named)
        else:
            good.append(row)
    return good, images, rejects


def check_captions(rows: list[dict], before: int) -> None:
    """Check that each row has captions; `before` is the number of earlier rows.

    Raises:
        LuminaError: if a row has no captions, or malformed ones.
    """
    for number, row in enumerate(rows, before + 1):
        where = f"row {number} of the data" + (f" ({row['key']})" if row.get("key") else "")
        if not get_captions(row, where):
            without = sum(not get_captions(row, where) for row in rows)
            count = f" ({without} of the first {len(rows)} rows have none)" if without > 1 else ""
            raise LuminaError(f"{where} has no 'captions'{count}; add them with `lumina caption`")


def encode_images(images: list[Image.Image], size: int, encode: Encode) -> list[Tensor]:
    """Return the latents (C, H, W) of each image, cropped to the best bucket of `size` pixels.

    Images of one bucket are encoded as one batch.
    """
    buckets = [best_size(*image.size, size) for image in images]
    latents: dict[int, Tensor] = {}
    order = sorted(range(len(images)), key=buckets.__getitem__)
    for bucket, group in groupby(order, key=buckets.__getitem__):
        numbers = list(group)
        pixels = np.stack([np.asarray(crop_image(images[i].convert("RGB"), bucket)) for i in numbers])
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents |= dict(zip(numbers, encode(tensor).float().cpu(), strict=True))
    return [latents[i] for i in range(len(images))]


def is_complete(folder: Path) -> bool:
    """Return whether the build of a cache folder was finished."""
    return bool((read_progress(folder) or {}).get("done"))


def count_rejects(folder: Path) -> int:
    """Return the number of rows of the source that a complete cache folder rejected."""
    return (read_progress(folder) or {}).get("rejects", 0)


def count_precomputed(folder: Path) -> int:
    """Return how many latents of a complete cache folder were precomputed by `lumina shard encode`."""
    return (read_progress(folder) or {}).get("ready", 0)

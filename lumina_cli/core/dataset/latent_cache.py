"""Latent cache of a source: the latents of its images at one size, encoded once, with their captions.

A cache folder contains latents.bin (float16, one image after another), rows.jsonl (captions, score and latent
shape of each image), rejects.jsonl (rows whose image cannot be read) and progress.json. progress.json is
written after each chunk and records the sizes of the other files. What they contain beyond these sizes is a
chunk that an interruption cut short: it is truncated, and the build continues from there.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.images.buckets import best_size, crop_image
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.io.jsonl import dump_row, get_captions
from lumina_cli.core.shards.tar import TarImage
from lumina_cli.core.sources.source import open_row_image

CHUNK = 64  # images encoded together
MAX_BAD_RATE = 0.05
EMPTY = {"rows": 0, "row_bytes": 0, "latent_bytes": 0, "rejects": 0, "reject_bytes": 0, "done": False}
EMPTY |= {"ready": 0}  # rows with precomputed latents
FILES = {"rows.jsonl": "row_bytes", "latents.bin": "latent_bytes", "rejects.jsonl": "reject_bytes"}
Encode = Callable[[Tensor], Tensor]
LatentsBySize = dict[int, Tensor]  # size in pixels -> latents (C, H, W)
FindLatents = Callable[[dict], LatentsBySize]
# An image and its precomputed latents; None instead of the image if latents of all sizes are precomputed.
OpenedImage = tuple[Image.Image | None, LatentsBySize]


class LatentStore:
    """The cached latents of one source at one size; N images.

    shapes    (N, 3)   channels, height and width of the latents of each image
    captions  N dicts  language -> level -> text
    scores    (N,)     "score" of the rows, nan if a row has none
    images    N texts  "TAR#MEMBER", None if an image is not from shards
    ends      (N,)     end of the latents of each image in latents.bin, in numbers
    """

    def __init__(self, folder: Path):
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        self.folder = folder
        self.shapes = np.array([row["shape"] for row in rows], np.int64).reshape(-1, 3)
        self.captions = [row["captions"] for row in rows]
        self.images = [row.get("image") for row in rows]
        self.scores = np.array([np.nan if row["score"] is None else row["score"] for row in rows], np.float64)
        self.ends = self.shapes.prod(1).cumsum()
        self.values = np.memmap(folder / "latents.bin", np.float16, "r")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.captions)

    def read(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        """Return the latents of `rows` (B,): float32 (B, C, H, W), or a list of (C, H, W) of mixed sizes."""
        shapes = self.shapes[rows]
        if (shapes == shapes[0]).all():
            length = int(shapes[0].prod())
            # One gather from the memory map, instead of one copy per image.
            at = (self.ends[rows] - length)[:, None] + np.arange(length)
            return torch.from_numpy(self.values[at].astype(np.float32)).reshape(
                len(rows), *shapes[0].tolist()
            )
        spans = [self.values[self.ends[row] - self.shapes[row].prod() : self.ends[row]] for row in rows]
        return [
            torch.from_numpy(span.astype(np.float32)).reshape(*shape.tolist())
            for span, shape in zip(spans, shapes, strict=True)
        ]


class _Writer:
    """Appends chunks to a cache folder; opening it truncates the files after the last complete chunk."""

    def __init__(self, folder: Path, size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, size
        self.progress = dict(EMPTY)
        if (folder / "progress.json").exists():
            self.progress |= json.loads((folder / "progress.json").read_text(encoding="utf-8"))

    def consumed(self) -> int:
        """Return the number of rows of the source that are done, including rejects."""
        return self.progress["rows"] + self.progress["rejects"]

    def open(self, stack: ExitStack) -> None:
        """Open the files for writing after the last complete chunk."""
        self.files = []
        for name, size in FILES.items():
            path = self.folder / name
            path.touch()
            file = stack.enter_context(path.open("r+b"))
            file.truncate(self.progress[size])
            file.seek(self.progress[size])
            self.files.append(file)

    def add(self, rows: list[dict], images: list[OpenedImage], rejects: list[dict], encode: Encode) -> None:
        """Write the latents of the images of `rows` at this size; encode those that are not precomputed."""
        latents = [precomputed.get(self.size) for _, precomputed in images]
        missing = [i for i, latent in enumerate(latents) if latent is None]
        encoded = encode_images([images[i][0] for i in missing], self.size, encode)
        for i, latent in zip(missing, encoded, strict=True):
            latents[i] = latent
        for row, latent in zip(rows, latents, strict=True):
            kept = {"captions": get_captions(row), "score": row.get("score"), "shape": list(latent.shape)}
            if isinstance(row["image"], TarImage):  # locates the overlays of its shard
                kept["image"] = str(row["image"])
            self.files[0].write(dump_row(kept).encode() + b"\n")
            self.files[1].write(latent.to(torch.float16).numpy().tobytes())
        for reject in rejects:
            self.files[2].write(dump_row(reject).encode() + b"\n")
        rejected = self.progress["rejects"] + len(rejects)
        precomputed = self.progress["ready"] + len(rows) - len(missing)
        self.record(rows=self.progress["rows"] + len(rows), rejects=rejected, ready=precomputed)

    def record(self, **changes) -> None:
        """Record in progress.json that what was written so far is complete."""
        for file in self.files:
            file.flush()
        sizes = {size: file.tell() for size, file in zip(FILES.values(), self.files, strict=True)}
        self.progress |= sizes | changes
        with atomic_write(self.folder / "progress.json") as aside:
            aside.write_text(json.dumps(self.progress), encoding="utf-8")


def build_stores(
    rows: Iterable[dict],
    folders: dict[int, Path],
    encode: Encode,
    max_bad_rate: float = MAX_BAD_RATE,
    find: FindLatents | None = None,
) -> Iterator[int]:
    """Encode the images of `rows` in one pass, at each size that is not cached; yield the rows done so far.

    folders       size in pixels -> cache folder
    encode        maps pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)
    max_bad_rate  fraction of the images that may be unreadable; they are recorded in rejects.jsonl
    find          returns the precomputed latents of a row by size; an image is opened only if one is missing

    Raises:
        LuminaError: if a row has no captions, or if `rows` is empty.
        TooManyRejects: at the end, if more than `max_bad_rate` of the images, or all of them, are unreadable.
    """
    writers = [_Writer(folder, size) for size, folder in folders.items() if not is_complete(folder)]
    if not writers:
        return
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
            raise LuminaError(f"{where} has no 'captions'; add them with `lumina caption`")


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
    progress = folder / "progress.json"
    return progress.exists() and json.loads(progress.read_text(encoding="utf-8"))["done"]


def count_rejects(folder: Path) -> int:
    """Return the number of rows of the source that a complete cache folder rejected."""
    return json.loads((folder / "progress.json").read_text(encoding="utf-8")).get("rejects", 0)


def count_precomputed(folder: Path) -> int:
    """Return how many latents of a complete cache folder were precomputed by `lumina shard encode`."""
    return json.loads((folder / "progress.json").read_text(encoding="utf-8")).get("ready", 0)

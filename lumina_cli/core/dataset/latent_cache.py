"""Latents of a source, encoded once per size and kept on disk, with the captions beside them.

A cache folder holds latents.bin (float16, one picture after another), rows.jsonl (captions, score and latent
size of each), rejects.jsonl (the rows whose picture could not be read) and progress.json. Only what
progress.json counts is whole; a killed build goes on from there.
"""

import hashlib
import json
import re
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
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.io.jsonl import dump_row, get_captions
from lumina_cli.core.shards.overlays.reader import split_source
from lumina_cli.core.shards.selection import is_selection, selected_shards
from lumina_cli.core.shards.tar import TarImage
from lumina_cli.core.sources.source import open_row_image

CHUNK = 64  # pictures encoded together
MAX_BAD_RATE = 0.05
NOTHING = {"rows": 0, "row_bytes": 0, "latent_bytes": 0, "rejects": 0, "reject_bytes": 0, "done": False}
NOTHING |= {"ready": 0}  # rows whose latents were there already
FILES = {"rows.jsonl": "row_bytes", "latents.bin": "latent_bytes", "rejects.jsonl": "reject_bytes"}
Encode = Callable[[Tensor], Tensor]
LatentsBySize = dict[int, Tensor]  # latents (C, H, W) by size in pixels
FindLatents = Callable[[dict], LatentsBySize]
OpenedImage = tuple[
    Image.Image | None, LatentsBySize
]  # a picture, and the latents that are known of it; None: all are
_ENCODED = re.compile(r"/overlays/(latents|text)-[^/]*/\d+/[^/]*$")  # what `lumina shard encode` writes


class LatentStore:
    """The cached latents of one source at one size; N pictures.

    shapes    (N, 3)  channels, height and width of each picture's latents
    captions  N dicts language -> level -> text
    scores    (N,)    the rows' "score", nan where a row has none
    images    N texts "TAR#MEMBER", None where a picture is not from shards
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
        return len(self.captions)

    def read(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        """Return float32 latents (B, C, H, W) of some pictures, or a list of (C, H, W) of mixed sizes."""
        shapes = self.shapes[rows]
        if (shapes == shapes[0]).all():
            length = int(shapes[0].prod())
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
    """Adds chunks to a cache folder; opening one drops what a kill left beyond its last whole chunk."""

    def __init__(self, folder: Path, size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, size
        self.progress = dict(NOTHING)
        if (folder / "progress.json").exists():
            self.progress |= json.loads((folder / "progress.json").read_text(encoding="utf-8"))

    def consumed(self) -> int:
        """Return how many rows of the source are done, the rejected ones among them."""
        return self.progress["rows"] + self.progress["rejects"]

    def open(self, stack: ExitStack) -> None:
        """Open for writing after the last whole chunk."""
        self.files = []
        for name, size in FILES.items():
            path = self.folder / name
            path.touch()
            file = stack.enter_context(path.open("r+b"))
            file.truncate(self.progress[size])
            file.seek(self.progress[size])
            self.files.append(file)

    def add(self, rows: list[dict], pictures: list[OpenedImage], rejects: list[dict], encode: Encode) -> None:
        """Write the latents of pictures at this size, those that are not known encoded first."""
        latents = [ready.get(self.size) for _, ready in pictures]
        missing = [i for i, latent in enumerate(latents) if latent is None]
        encoded = encode_pictures([pictures[i][0] for i in missing], self.size, encode)
        for i, latent in zip(missing, encoded, strict=True):
            latents[i] = latent
        for row, latent in zip(rows, latents, strict=True):
            kept = {"captions": get_captions(row), "score": row.get("score"), "shape": list(latent.shape)}
            if isinstance(row["image"], TarImage):  # by which more is found beside its shard
                kept["image"] = str(row["image"])
            self.files[0].write(dump_row(kept).encode() + b"\n")
            self.files[1].write(latent.to(torch.float16).numpy().tobytes())
        for reject in rejects:
            self.files[2].write(dump_row(reject).encode() + b"\n")
        rejected = self.progress["rejects"] + len(rejects)
        ready = self.progress["ready"] + len(rows) - len(missing)
        self.note(rows=self.progress["rows"] + len(rows), rejects=rejected, ready=ready)

    def note(self, **changes) -> None:
        """Count what was written as whole."""
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
    """Encode a source, in one pass, at each size of `folders` that is not cached; yields pictures done.

    `folders` maps sizes in pixels to folders; `encode` takes pixels (B, 3, H, W) in [-1, 1] to latents.
    What `find` gives of a row, latents by size, is taken; the picture is opened where a size is missing. A
    row whose picture cannot be read goes to rejects.jsonl; TooManyBad is raised at the end if more than
    `max_bad_rate` of all did. LuminaError for a row without captions, or a source without rows.
    """
    writers = [_Writer(folder, size) for size, folder in folders.items() if not is_whole(folder)]
    if not writers:
        return
    done = min(writer.consumed() for writer in writers)
    rows = islice(rows, done, None)
    with disk_errors(writers[0].folder), ExitStack() as stack:
        for writer in writers:
            writer.open(stack)
        while chunk := next_chunk(rows, done, writers):
            check_captions(chunk, done)
            good, pictures, rejects = open_pictures(chunk, done, find, {writer.size for writer in writers})
            for writer in writers:
                if writer.consumed() == done:
                    writer.add(good, pictures, rejects, encode)
            done += len(chunk)
            yield done
        if not done:
            raise LuminaError("the data has no rows")
        check_rejects(writers[0].progress["rejects"], done, max_bad_rate, writers[0].folder)
        for writer in writers:
            writer.note(done=True)


def next_chunk(rows: Iterator[dict], done: int, writers: list[_Writer]) -> list[dict]:
    """Return the rows after the first `done`, up to a chunk of them.

    Sizes may have been stopped at different counts; no chunk reaches past where one of them begins to write.
    """
    ahead = [writer.consumed() - done for writer in writers if writer.consumed() > done]
    return list(islice(rows, min([CHUNK, *ahead])))


def check_rejects(rejected: int, done: int, max_bad_rate: float, folder: Path) -> None:
    """Raise TooManyBad where more than `max_bad_rate` of the pictures, or all of them, could not be read."""
    why = f"{folder / 'rejects.jsonl'} says why"
    if rejected > max_bad_rate * done:
        bad = f"{rejected} of {done} pictures cannot be used"
        raise TooManyRejects(f"{bad}, more than max_bad_rate={max_bad_rate:g} allows; {why}")
    if rejected == done:
        raise TooManyRejects(f"none of {done} pictures can be used; {why}")


def open_pictures(
    rows: list[dict], before: int, find: FindLatents | None = None, sizes: Iterable[int] = ()
) -> tuple[list[dict], list[OpenedImage], list[dict]]:
    """Return the rows whose pictures open, these pictures, and rejects with the reason for the others.

    A picture whose latents `find` knows at all sizes is not opened.
    """
    good, pictures, rejects = [], [], []
    for number, row in enumerate(rows, before + 1):
        try:
            ready = find(row) if find else {}
            whole = bool(ready) and all(size in ready for size in sizes)
            pictures.append((None if whole else open_row_image(row), ready))
        except LuminaError as error:
            named = {"row": number, "key": row.get("key"), "image": row.get("image"), "reason": str(error)}
            rejects.append(named)
        else:
            good.append(row)
    return good, pictures, rejects


def check_captions(rows: list[dict], before: int) -> None:
    """Raise LuminaError for the first row without captions as they should be; `before` rows came earlier."""
    for number, row in enumerate(rows, before + 1):
        where = f"row {number} of the data" + (f" ({row['key']})" if row.get("key") else "")
        if not get_captions(row, where):
            raise LuminaError(f"{where} has no 'captions'; `lumina caption` adds them")


def encode_pictures(pictures: list[Image.Image], size: int, encode: Encode) -> list[Tensor]:
    """Return the latents (C, H, W) of each picture, cropped for `size`; those of one crop size together."""
    boxes = [best_size(*picture.size, size) for picture in pictures]
    latents: dict[int, Tensor] = {}
    order = sorted(range(len(pictures)), key=boxes.__getitem__)
    for box, group in groupby(order, key=boxes.__getitem__):
        numbers = list(group)
        pixels = np.stack([np.asarray(crop_image(pictures[i].convert("RGB"), box)) for i in numbers])
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents |= dict(zip(numbers, encode(tensor).float().cpu(), strict=True))
    return [latents[i] for i in range(len(pictures))]


def is_whole(folder: Path) -> bool:
    """Whether a cache folder was built to its end."""
    progress = folder / "progress.json"
    return progress.exists() and json.loads(progress.read_text(encoding="utf-8"))["done"]


def count_rejects(folder: Path) -> int:
    """Return how many rows of the source a whole cache folder left out."""
    return json.loads((folder / "progress.json").read_text(encoding="utf-8")).get("rejects", 0)


def count_precomputed(folder: Path) -> int:
    """Return how many latents of a whole cache folder were not encoded for it, but found beside shards."""
    return json.loads((folder / "progress.json").read_text(encoding="utf-8")).get("ready", 0)


def fingerprint(source: str, parts: Path) -> str:
    """Return a key of a source and the files of a model part: another one wherever either has changed.

    Files of sources count by their names, sizes and times, those of shards with their overlays, and those of
    a selection with its shards; parts count by content.
    """
    digest = hashlib.sha256(source.encode())
    place = split_source(source)[0]
    folders = [place, selected_shards(place)] if is_selection(place) else [place]
    for folder in folders:
        for name, version in sorted(_files(folder)):
            if _ENCODED.search(name):
                continue  # what can be computed from the rest is no other data
            digest.update(f"{filesystem.basename(name)} {version}".encode(errors="surrogateescape"))
    for file in sorted(p for p in parts.rglob("*") if p.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Yield (name, size and time) of the files in a place and below it, or what else tells versions."""
    if not filesystem.is_url(place):
        path = Path(place)
        files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
        for file in files:
            if file.is_file():
                yield str(file), filesystem.file_version(str(file))
    elif filesystem.is_file(place):
        yield place, filesystem.file_version(place)
    else:
        system, path = filesystem.open_filesystem(place)
        with filesystem.remote_errors(place, "read"):
            for name, info in system.find(path, detail=True).items():
                yield name, " ".join(str(info.get(key)) for key in ("size", "ETag", "mtime", "created"))

"""The latents of a cache folder, read through a memory map and verified."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumina_cli.core.dataset.cache_check import discard_cache
from lumina_cli.core.errors import LuminaError


class LatentStore:
    """The cached latents of one source at one size; N images.

    shapes    (N, 3)   channels, height and width of the latents of each image
    captions  N dicts  language -> level -> text
    scores    (N,)     "score" of the rows, nan if a row has none
    images    N texts  "TAR#MEMBER", None if an image is not from shards
    ends      (N,)     end of the latents of each image in latents.bin, in numbers
    notes     one line about each file of the cache that was damaged and built again
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
        self.notes: list[str] = []
        # None for the images of a cache without checksums, and for those that were verified
        self._checksums: list[int | None] = [row.get("crc") for row in rows]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.captions)

    def read(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        """Return the latents of `rows` (B,): float32 (B, C, H, W), or a list of (C, H, W) of mixed sizes.

        Raises:
            LuminaError: if they do not match their checksums; the next run builds the cache again.
        """
        for row in rows:
            self._verify(int(row))
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

    def _verify(self, row: int) -> None:
        """Compare the latents of an image with their checksum, the first time that they are read."""
        wanted, self._checksums[row] = self._checksums[row], None
        if wanted is None:
            return
        span = self.values[self.ends[row] - self.shapes[row].prod() : self.ends[row]]
        if zlib.crc32(span.tobytes()) != wanted:
            discard_cache(self.folder)
            raise LuminaError(
                f"{self.folder / 'latents.bin'} is damaged at image {row}; "
                "resume the run with --resume, which builds this cache again"
            )

"""Rendered nano scenes in bulk, for training the small frozen parts."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.nano.scene import draw_scene

CHUNK = 50
MOST = 4  # things in a scene


def bounding_boxes(masks: np.ndarray) -> np.ndarray:
    """Boxes (MOST, 4), x0 y0 x1 y1 in pixels, of masks (things, H, W); NaN where no thing is seen."""
    boxes = np.full((MOST, 4), np.nan, np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        if len(rows):
            boxes[i] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes


def _draw(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from lumina_cli.core.nano.renderer import render

    seed, start, stop, size = job
    torch.set_num_threads(1)
    pictures = render([draw_scene(seed, i) for i in range(start, stop)], size)
    boxes = np.stack([bounding_boxes(picture.masks) for picture in pictures])
    return np.stack([np.asarray(picture.image) for picture in pictures]), boxes


def render_images(
    seed: int, count: int, cache: Path, size: int = 128, workers: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (count, size, size, 3) uint8 and boxes (count, MOST, 4) of the first scenes of a seed.

    They are kept in the folder `cache`, so that the second call reads them.
    """
    pictures_at, boxes_at = (cache / f"{what}-{seed}-{count}-{size}.npy" for what in ("pictures", "boxes"))
    if not (pictures_at.exists() and boxes_at.exists()):
        jobs = [(seed, i, min(i + CHUNK, count), size) for i in range(0, count, CHUNK)]
        boxes = []
        with (
            ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
            atomic_write(pictures_at) as aside,
        ):
            pictures = np.lib.format.open_memmap(aside, "w+", np.uint8, (count, size, size, 3))
            for job, (drawn, boxed) in zip(jobs, pool.map(_draw, jobs), strict=True):
                pictures[job[1] : job[2]] = drawn
                boxes.append(boxed)
            pictures.flush()
        with atomic_write(boxes_at) as aside:
            np.save(aside, np.concatenate(boxes))
    return np.load(pictures_at, mmap_mode="r"), np.load(boxes_at)

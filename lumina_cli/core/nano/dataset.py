"""Many rendered nano scenes, for training the small frozen components."""

from pathlib import Path

import numpy as np

from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.parallel.process_pool import map_in_order
from lumina_cli.core.nano.scene import draw_scene

CHUNK = 50
MOST = 4  # objects in a scene


def bounding_boxes(masks: np.ndarray) -> np.ndarray:
    """Return boxes (MOST, 4), x0 y0 x1 y1 in pixels, of masks (things, H, W); NaN if no pixel is visible."""
    boxes = np.full((MOST, 4), np.nan, np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        if len(rows):
            boxes[i] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes


def _render_chunk(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from lumina_cli.core.nano.rendering.renderer import render

    seed, start, stop, size = job
    torch.set_num_threads(1)
    images = render([draw_scene(seed, i) for i in range(start, stop)], size)
    boxes = np.stack([bounding_boxes(image.masks) for image in images])
    return np.stack([np.asarray(image.image) for image in images]), boxes


def render_images(
    seed: int, count: int, cache: Path, size: int = 128, workers: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Render the first `count` scenes of a seed, or read them from the folder `cache`.

    returns    images (count, size, size, 3) uint8, boxes (count, MOST, 4) float32 in pixels
    """
    images_path, boxes_path = (cache / f"{what}-{seed}-{count}-{size}.npy" for what in ("pictures", "boxes"))
    shapes = (count, size, size, 3), (count, MOST, 4)
    if not (_is_whole(images_path, shapes[0]) and _is_whole(boxes_path, shapes[1])):
        jobs = [(seed, i, min(i + CHUNK, count), size) for i in range(0, count, CHUNK)]
        boxes = []
        with atomic_write(images_path) as aside:
            images = np.lib.format.open_memmap(aside, "w+", np.uint8, shapes[0])
            for job, (rendered, boxed) in zip(jobs, map_in_order(_render_chunk, jobs, workers), strict=True):
                images[job[1] : job[2]] = rendered
                boxes.append(boxed)
            images.flush()
        with atomic_write(boxes_path) as aside:
            np.save(aside, np.concatenate(boxes))
    return np.load(images_path, mmap_mode="r"), np.load(boxes_path)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether an array file exists and has this shape; a damaged one is rendered again."""
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False

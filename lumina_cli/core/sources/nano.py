"""Nano scenes as rows, rendered in chunks by this process or by workers, always in the same order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lumina_cli.core.images.depth import encode_depth, encode_masks
from lumina_cli.core.images.io import png_bytes
from lumina_cli.core.io.parallel.process_pool import map_in_order
from lumina_cli.core.nano.captions import all_captions
from lumina_cli.core.nano.scene import Scene, draw_scene
from lumina_cli.core.shards.image_ref import DeferredImage

CHUNK = 48  # scenes rendered together; smaller chunks take longer per scene
# seed, first index, index after the last, size in pixels, held out, whether with depth and masks
RenderJob = tuple[int, int, int, int, bool, bool]


def nano_rows(
    count: int, seed: int, size: int, held_out: bool = False, workers: int = 0, truth: bool = False
) -> Iterator[dict]:
    """Yield a row per scene: key, image, captions, scene and, with `truth`, depth and masks.

    count     number of scenes
    size      side of the image in pixels
    held_out  use the scenes that are reserved for evaluation
    workers   processes; "image" may then be the bytes of a PNG file instead of an image

    "depth" and "masks" are the bytes of PNG files.
    """
    starts = range(0, count, CHUNK)
    jobs = ((seed, i, min(i + CHUNK, count), size, held_out, truth) for i in starts)
    if workers > 0 and len(starts) > 4 * workers:
        yield from in_workers(jobs, workers)
    else:
        for job in jobs:
            yield from chunk_rows(job)


def chunk_rows(job: RenderJob, encode: bool = False) -> list[dict]:
    """Return the rows of one chunk; with `encode`, "image" is the bytes of a PNG file."""
    from lumina_cli.core.nano.rendering.renderer import render

    seed, start, stop, size, held_out, truth = job
    scenes = [draw_scene(seed, index, held_out) for index in range(start, stop)]
    rows = []
    for index, scene, rendered in zip(range(start, stop), scenes, render(scenes, size), strict=True):
        image = png_bytes(rendered.image) if encode else rendered.image
        row = scene_row(seed, index, held_out, scene, image)
        known = (
            {"depth": encode_depth(rendered.depth), "masks": encode_masks(rendered.masks)} if truth else {}
        )
        rows.append(row | known)
    return rows


@dataclass(frozen=True)
class DeferredScene(DeferredImage):
    """The image of one scene: number `offset` of a chunk, which is rendered as a whole."""

    job: RenderJob
    offset: int

    @staticmethod
    def make_all(images: "list[DeferredScene]") -> list[dict]:
        """Render the scenes; return the fields of each row that `chunk_rows` renders."""
        chunks = {job: chunk_rows(job, encode=True) for job in dict.fromkeys(image.job for image in images)}
        rows = (chunks[image.job][image.offset] for image in images)
        return [{name: row[name] for name in ("image", "depth", "masks") if name in row} for row in rows]


def deferred_rows(
    count: int, seed: int, size: int, held_out: bool = False, truth: bool = False
) -> Iterator[dict]:
    """Yield the rows of `nano_rows` with images that workers render."""
    for start in range(0, count, CHUNK):
        job = (seed, start, min(start + CHUNK, count), size, held_out, truth)
        for offset, index in enumerate(range(start, job[2])):
            yield scene_row(
                seed, index, held_out, draw_scene(seed, index, held_out), DeferredScene(job, offset)
            )


def scene_row(seed: int, index: int, held_out: bool, scene: Scene, image: Any) -> dict:
    """Return the row of a scene, without depth and masks."""
    name = f"nano-{seed}-held-out" if held_out else f"nano-{seed}"
    captions = all_captions(scene, index)
    return {"key": f"{name}-{index:06d}", "image": image, "captions": captions, "scene": scene.to_json()}


def _render_encoded(job: RenderJob) -> list[dict]:
    return chunk_rows(job, encode=True)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


def in_workers(jobs: Iterable[RenderJob], workers: int) -> Iterator[dict]:
    """Yield the rows of all chunks, rendered by worker processes, in order."""
    for rows in map_in_order(_render_encoded, jobs, workers, _start_worker):
        yield from rows

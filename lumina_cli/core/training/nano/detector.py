"""Trains the nano detector on rendered scenes, and measures its accuracy on other scenes.

B batch, N objects, G cells along one side of the grid of outputs.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.nano.detector import STRIDE, Detection, Detector, DetectorNet
from lumina_cli.core.nano.scene import KINDS, TINTS, Scene, draw_scene
from lumina_cli.core.training.config import Count, Rate, enough_scenes
from lumina_cli.core.training.nano.fit import cosine_rate, descend, fit
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

SEED, UNSEEN = 500_001, 600_001  # scenes that no other component is trained on


class Settings(BaseModel):
    """Settings of `lumina train nano-detector`."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str = "detector"
    """The part that the recipe trains."""
    scenes: Count = 8_000
    """Number of rendered scenes to train on."""
    steps: Count = 1_500
    """Optimizer steps."""
    batch: Count = 32
    """Images per step."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 112
    """Channels of the network, in 8 groups."""
    lr: Rate = 2e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    save_every: Count = 500
    """Steps between checkpoints."""

    _enough = model_validator(mode="after")(enough_scenes)


SCHEMA = Settings


def targets(scenes: list[Scene], boxes: np.ndarray, grid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the training targets of scenes with boxes (B, MOST, 4), x0 y0 x1 y1 in pixels.

    heat     (B, KINDS, G, G)  1 at the center of an object of a kind, falling off around it
    cells    (N, 3)            image, row and column of each center
    tints    (N,)              index of each object's tint
    offsets  (N, 4)            center within the cell, width and height, in cells
    """
    heat = torch.zeros(len(scenes), len(KINDS), grid, grid)
    axis = torch.arange(grid).float()
    cells, tints, offsets = [], [], []
    for i, scene in enumerate(scenes):
        for thing, (x0, y0, x1, y1) in zip(scene.things, boxes[i].tolist(), strict=False):
            if math.isnan(x0):  # hidden behind other objects
                continue
            x, y = (x0 + x1) / 2 / STRIDE, (y0 + y1) / 2 / STRIDE
            column, row = min(int(x), grid - 1), min(int(y), grid - 1)
            near = torch.exp(-((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2) / 0.8)
            kind = KINDS.index(thing.kind)
            heat[i, kind] = torch.maximum(heat[i, kind], near)
            cells.append((i, row, column))
            tints.append(TINTS.index(thing.tint))
            offsets.append((x - column, y - row, (x1 - x0) / STRIDE, (y1 - y0) / STRIDE))
    return heat, torch.tensor(cells), torch.tensor(tints), torch.tensor(offsets)


def disturb(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Add blur, noise and color shifts: the detector must tolerate the flaws of generated images."""
    if rng.random() < 0.4:
        pixels = interpolate(avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    colour = torch.from_numpy(rng.normal(0, 0.04, (len(pixels), 3, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.88, 1.12, (len(pixels), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.08), pixels.shape)).float()
    return pixels * contrast + colour + noise


def _loss(net: DetectorNet, pixels: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
    """Return the loss on `truth`, as `targets` returns it: focal loss (CornerNet), cross-entropy and L1."""
    heat, cells, tints, offsets = truth
    with torch.autocast("cpu", torch.bfloat16):
        maps = net(pixels)
    logits, tint, box = (part.float() for part in maps)
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    focal = torch.where(heat == 1, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
    i, row, column = cells.T
    tint_loss = cross_entropy(tint[i, :, row, column], tints)
    return -focal.sum() / len(cells) + tint_loss + 0.3 * (box[i, :, row, column] - offsets).abs().mean()


def _is_right(scene: Scene, found: list[Detection], threshold: float) -> tuple[bool, bool]:
    """Return whether exactly the kinds of the scene were found, and whether their tints are right, too."""
    found = [detection for detection in found if detection.score > threshold]
    kinds = sorted(d.kind for d in found) == sorted(t.kind for t in scene.things)
    tints = sorted((d.kind, d.tint) for d in found) == sorted((t.kind, t.tint) for t in scene.things)
    return kinds, tints


def calibrate(net: DetectorNet, cache: Path, count: int = 400) -> tuple[dict, dict]:
    """Choose the threshold that is right on most of `count` unseen scenes; measure it on as many others.

    Returns the thresholds by name, and the accuracy as a fraction of scenes: an upper bound for scores that
    this detector measures. `cache` is the folder of rendered images.
    """
    images, _ = render_images(UNSEEN, 2 * count, cache)
    scenes = [draw_scene(UNSEEN, i) for i in range(2 * count)]
    found = Detector(net, {}).detect([Image.fromarray(image) for image in images])
    choices = [i / 20 for i in range(3, 17)]
    right = [
        sum(_is_right(s, f, c)[0] for s, f in zip(scenes[:count], found[:count], strict=True))
        for c in choices
    ]
    best = [c for c, r in zip(choices, right, strict=True) if r == max(right)]
    threshold = best[len(best) // 2]
    accuracy = np.mean(
        [_is_right(s, f, threshold) for s, f in zip(scenes[count:], found[count:], strict=True)], axis=0
    )
    ceiling = {
        "scenes": count,
        "kinds": round(float(accuracy[0]), 4),
        "kinds_and_tints": round(float(accuracy[1]), 4),
    }
    return {"default": threshold, "counting": threshold}, ceiling


def _save(net: DetectorNet, out: Path, width: int) -> dict:
    """Round to bfloat16, calibrate the result, and save weights, thresholds and accuracy."""
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in net.state_dict().items()}
    rounded = DetectorNet(width)
    rounded.load_state_dict(weights)
    thresholds, ceiling = calibrate(rounded, out)
    config = {"width": width, "thresholds": thresholds, "ceiling": ceiling}
    with staged_folder(out / "detector") as folder:
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return ceiling


def train_detector(settings: Settings, out: Path, resume: bool = False) -> Iterator[dict]:
    """Train the detector, yield rows of metrics, and write `out/detector` with its thresholds and accuracy.

    Raises:
        LuminaError: if there is nothing to resume, or the saved state is damaged or of another network.
    """
    images, boxes = render_images(SEED, settings.scenes, out)
    scenes = [draw_scene(SEED, i) for i in range(settings.scenes)]
    torch.manual_seed(SEED)
    net = DetectorNet(settings.width).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=0.01)

    def train_step(step: int) -> dict[str, float]:
        rng = np.random.default_rng((SEED, step))
        index = np.sort(rng.choice(len(images), settings.batch, replace=False))
        pixels = torch.from_numpy(np.array(images[index])).permute(0, 3, 1, 2).float() / 127.5 - 1
        truth = targets([scenes[i] for i in index], boxes[index], pixels.shape[-1] // STRIDE)
        loss = _loss(net, disturb(pixels, rng), truth)
        descend(net, optimizer, loss, settings.lr * cosine_rate(step, settings.steps, warmup=100), clip=5.0)
        return {"loss": loss.item()}

    yield from fit(
        TrainingProgress(out / "detector.pt", net, optimizer, settings),
        train_step,
        lambda: _save(net, out, settings.width),
        log_every=25,
        measures=True,
        resume=resume,
    )

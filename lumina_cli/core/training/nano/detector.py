"""Trains the nano detector on renders of its own, and measures its ceiling on others."""

import json
import math
import time
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
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

SEED, UNSEEN = 500_001, 600_001  # scenes that no other part is trained on


class Settings(BaseModel):
    """What `lumina train nano-detector` can set."""

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
    """Heat (B, KINDS, G, G); middles (N, 3): picture, row, column; their tints (N,) and boxes (N, 4)."""
    heat = torch.zeros(len(scenes), len(KINDS), grid, grid)
    axis = torch.arange(grid).float()
    cells, tints, offsets = [], [], []
    for i, scene in enumerate(scenes):
        for thing, (x0, y0, x1, y1) in zip(scene.things, boxes[i].tolist(), strict=False):
            if math.isnan(x0):
                continue
            x, y = (x0 + x1) / 2 / STRIDE, (y0 + y1) / 2 / STRIDE
            column, row = min(int(x), grid - 1), min(int(y), grid - 1)
            near = torch.exp(-((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2) / 0.8)
            k = KINDS.index(thing.kind)
            heat[i, k] = torch.maximum(heat[i, k], near)
            cells.append((i, row, column))
            tints.append(TINTS.index(thing.tint))
            offsets.append((x - column, y - row, (x1 - x0) / STRIDE, (y1 - y0) / STRIDE))
    return heat, torch.tensor(cells), torch.tensor(tints), torch.tensor(offsets)


def disturb(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and shifts of colour: the flaws of generated pictures must not confuse the detector."""
    if rng.random() < 0.4:
        pixels = interpolate(avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    colour = torch.from_numpy(rng.normal(0, 0.04, (len(pixels), 3, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.88, 1.12, (len(pixels), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.08), pixels.shape)).float()
    return pixels * contrast + colour + noise


def _loss(net: DetectorNet, pixels: Tensor, wanted: tuple[Tensor, ...]) -> Tensor:
    heat, cells, tints, offsets = wanted
    with torch.autocast("cpu", torch.bfloat16):
        maps = net(pixels)
    logits, tint, box = (part.float() for part in maps)
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    middle = heat == 1
    focal = torch.where(middle, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
    i, row, column = cells.T
    tint_loss = cross_entropy(tint[i, :, row, column], tints)
    return -focal.sum() / len(cells) + tint_loss + 0.3 * (box[i, :, row, column] - offsets).abs().mean()


def _is_right(scene: Scene, found: list[Detection], threshold: float) -> tuple[bool, bool]:
    """Whether exactly the scene's kinds were found, and whether with their tints."""
    found = [detection for detection in found if detection.score > threshold]
    kinds = sorted(d.kind for d in found) == sorted(t.kind for t in scene.things)
    looks = sorted((d.kind, d.tint) for d in found) == sorted((t.kind, t.tint) for t in scene.things)
    return kinds, looks


def calibrate(net: DetectorNet, cache: Path, count: int = 400) -> tuple[dict, dict]:
    """Choose the threshold that reads most unseen scenes right; return it, and the ceiling on others."""
    pictures, _ = render_images(UNSEEN, 2 * count, cache)
    scenes = [draw_scene(UNSEEN, i) for i in range(2 * count)]
    found = Detector(net, {}).detect([Image.fromarray(picture) for picture in pictures])
    choices = [i / 20 for i in range(3, 17)]
    right = [
        sum(_is_right(s, f, c)[0] for s, f in zip(scenes[:count], found[:count], strict=True))
        for c in choices
    ]
    best = [c for c, r in zip(choices, right, strict=True) if r == max(right)]
    threshold = best[len(best) // 2]
    shares = np.mean(
        [_is_right(s, f, threshold) for s, f in zip(scenes[count:], found[count:], strict=True)], axis=0
    )
    ceiling = {
        "scenes": count,
        "kinds": round(float(shares[0]), 4),
        "kinds_and_tints": round(float(shares[1]), 4),
    }
    return {"default": threshold, "counting": threshold}, ceiling


def _save(net: DetectorNet, out: Path, width: int) -> dict:
    """Round to bfloat16, calibrate what is left, and save both."""
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
    """Train the detector, yield rows of metrics, and leave `out/detector`, thresholds and ceiling inside."""
    pictures, boxes = render_images(SEED, settings.scenes, out)
    scenes = [draw_scene(SEED, i) for i in range(settings.scenes)]
    torch.manual_seed(SEED)
    net = DetectorNet(settings.width).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=0.01)
    progress = TrainingProgress(out / "detector.pt", net, optimizer, settings)
    first, start = (progress.load() if resume else 0), time.monotonic()
    if first >= settings.steps:  # a kill or a full disk may have kept the last save from ending
        yield {"step": first, **_save(net, out, settings.width)}
    for step in range(first, settings.steps):
        rng = np.random.default_rng((SEED, step))
        index = np.sort(rng.choice(len(pictures), settings.batch, replace=False))
        pixels = torch.from_numpy(np.array(pictures[index])).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = targets([scenes[i] for i in index], boxes[index], pixels.shape[-1] // STRIDE)
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = settings.lr * rate
        loss = _loss(net, disturb(pixels, rng), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        row = {"step": step + 1, "loss": loss.item(), "seconds": time.monotonic() - start}
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            progress.save(step + 1)
            yield {**row, **_save(net, out, settings.width)}
        elif (step + 1) % 25 == 0:
            yield row

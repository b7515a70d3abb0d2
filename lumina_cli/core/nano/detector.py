"""Object detector for nano images: position, kind and tint of each object.

A small convolutional network predicts object centers on a 16 x 16 grid (one heat map per kind), with a tint
and a box per cell, as CenterNet does. It is only a judge: the training of the model does not use it.

B images, G grid size; pixels are (B, 3, 128, 128) in [-1, 1].
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nano.scene import KINDS, TINTS
from lumina_cli.core.weights.files import check_state_dict, read_weights

SIZE, STRIDE = 128, 8


@dataclass(frozen=True)
class Detection:
    """A detected object: kind, tint, confidence in [0, 1], and box x0 y0 x1 y1 in pixels."""

    kind: str
    tint: str
    score: float
    box: tuple[float, float, float, float]


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DetectorNet(nn.Module):
    """The network: pixels (B, 3, 128, 128) -> heat (B, KINDS, G, G), tint (B, TINTS, G, G), box (B, 4, G, G).

    Heat and tint are logits; a box is the offset of the center in its cell, width and height, in cells.
    """

    def __init__(self, width: int = 112):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, width, 4, stride=2, padding=1),
        )
        self.body = nn.Sequential(*(_Block(width, dilation) for dilation in (1, 2, 4, 1)))
        self.head = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, len(KINDS) + len(TINTS) + 4, 1)
        )
        nn.init.constant_(self.head[-1].bias[: len(KINDS)], -4.0)  # most cells contain no center

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.body(self.stem(pixels))).split([len(KINDS), len(TINTS), 4], dim=1)


class Detector:
    """A trained detector; `thresholds` has the minimum scores for "default" and "counting"."""

    def __init__(self, net: DetectorNet, thresholds: dict[str, float], ceiling: dict | None = None):
        self.net, self.thresholds, self.ceiling = net.eval(), thresholds, ceiling or {}

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the detections of each image, most confident first; images are resized to 128 px."""
        found = []
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            arrays = [np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)) for image in part]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
            scales = [(image.width / SIZE, image.height / SIZE) for image in part]
            found += [
                _to_detections(*maps, scale) for *maps, scale in zip(*self.net(pixels), scales, strict=True)
            ]
        return found


def _to_detections(heat: Tensor, tint: Tensor, box: Tensor, scale: tuple[float, float]) -> list[Detection]:
    """Convert the maps of one image into detections: local maxima of the strongest kind in 3 x 3 windows."""
    score, kind = heat.sigmoid().max(0)
    peaks = (score == max_pool2d(score[None, None], 3, 1, 1)[0, 0]) & (score > 0.05)
    found = []
    for row, column in peaks.nonzero().tolist():
        dx, dy, width, height = box[:, row, column].tolist()
        x, y = (column + dx) * STRIDE * scale[0], (row + dy) * STRIDE * scale[1]
        w, h = max(width, 0.1) * STRIDE * scale[0] / 2, max(height, 0.1) * STRIDE * scale[1] / 2
        name = TINTS[int(tint[:, row, column].argmax())]
        found.append(
            Detection(
                KINDS[int(kind[row, column])], name, float(score[row, column]), (x - w, y - h, x + w, y + h)
            )
        )
    return sorted(found, key=lambda detection: -detection.score)


def load_detector(folder: Path) -> Detector:
    """Load a detector from a folder with config.json and model.safetensors.

    Raises:
        LuminaError: if the folder has no detector, or its weights do not fit.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise LuminaError(
            f"{folder} contains no detector; train one with `lumina train nano-detector`"
        ) from error
    net = DetectorNet(config["width"])
    weights = read_weights(folder / "model.safetensors")
    check_state_dict(net, weights, str(folder))
    net.load_state_dict(weights)
    return Detector(net, config["thresholds"], config.get("ceiling"))

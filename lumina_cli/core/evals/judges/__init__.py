"""Judges detect objects in images; the rules of a benchmark turn the detections into scores."""

from collections.abc import Sequence
from typing import Protocol

from PIL.Image import Image


class Detection(Protocol):
    """A detected object; `score` is in [0, 1], `box` is (x0, y0, x1, y1) in pixels."""

    kind: str
    tint: str
    score: float
    box: Sequence[float]


class Judge(Protocol):
    """A detector of `kinds` of objects in `tints`.

    thresholds    minimum detection score by task, and "default"
    """

    name: str
    kinds: Sequence[str]
    tints: Sequence[str]
    thresholds: dict[str, float]

    def detect(self, images: list[Image]) -> list[list[Detection]]: ...

"""Judges look at pictures and say what is there; a benchmark decides what that is worth."""

from collections.abc import Sequence
from typing import Protocol

from PIL.Image import Image


class Detection(Protocol):
    """One thing that was seen; `score` is 0 to 1, `box` (x0, y0, x1, y1) in pixels."""

    kind: str
    tint: str
    score: float
    box: Sequence[float]


class Judge(Protocol):
    """Knows `kinds` and `tints`; `thresholds` holds the score to pass, by task and "default"."""

    name: str
    kinds: Sequence[str]
    tints: Sequence[str]
    thresholds: dict[str, float]

    def detect(self, pictures: list[Image]) -> list[list[Detection]]: ...

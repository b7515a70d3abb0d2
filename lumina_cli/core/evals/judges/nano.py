"""The judge of nano's synthetic scenes: a small detector, trained on other renders than the model."""

from pathlib import Path

from PIL.Image import Image

from lumina_cli.core.nano.detector import Detection, load_detector
from lumina_cli.core.nano.scene import KINDS, TINTS
from lumina_cli.core.registry import ASSETS

SHIPPED = ASSETS / "nano" / "detector"
THRESHOLDS = {"default": 0.3, "counting": 0.9}  # GenEval's, for a detector without calibrated ones


class NanoJudge:
    """Detector of the sixteen nano kinds in ten tints, with the thresholds calibrated in its training.

    `ceiling` is the score of the detector on true renders, measured when it was trained.
    """

    name = "nano"
    kinds = KINDS
    tints = TINTS

    def __init__(self, folder: Path | str | None = None):
        self.detector = load_detector(Path(folder or SHIPPED))
        self.thresholds = THRESHOLDS | self.detector.thresholds
        self.ceiling = self.detector.ceiling

    def detect(self, images: list[Image]) -> list[list[Detection]]:
        """Return the detections of each image."""
        return self.detector.detect(images)

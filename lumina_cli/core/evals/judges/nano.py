"""The judge of the nano world: its own small detector, trained on renders apart from the model's."""

from pathlib import Path

from PIL.Image import Image

from lumina_cli.core.nano.detector import Detection, load_detector
from lumina_cli.core.nano.scene import KINDS, TINTS
from lumina_cli.core.registry import ASSETS

SHIPPED = ASSETS / "nano" / "detector"
THRESHOLDS = {"default": 0.3, "counting": 0.9}  # GenEval's, where a detector brings none of its own


class NanoJudge:
    """Sees the sixteen nano kinds in ten tints; thresholds are those calibrated with its detector.

    `ceiling` is how well the detector read true renders when it was trained.
    """

    name = "nano"
    kinds = KINDS
    tints = TINTS

    def __init__(self, folder: Path | str | None = None):
        self.detector = load_detector(Path(folder or SHIPPED))
        self.thresholds = THRESHOLDS | self.detector.thresholds
        self.ceiling = self.detector.ceiling

    def detect(self, pictures: list[Image]) -> list[list[Detection]]:
        """Return what is seen in each picture."""
        return self.detector.detect(pictures)

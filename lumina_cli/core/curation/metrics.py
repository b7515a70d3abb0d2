"""Metrics of images. Values are stored, so that thresholds can be chosen later.

    sharpness   variance of the Laplacian (0 1 0, 1 -4 1, 0 1 0) of the luma, 0 to 255, without the outermost
                pixels, of the image resized to 512 pixels on its longer side: without resizing, a thumbnail
                would be sharper than its original
    entropy     entropy of the histogram of the luma, in bits: 0 for a uniform grey, at most 8
    phash       perceptual hash, 64 bits as 16 hex digits (imagehash): near duplicates differ in few bits
    text_area   fraction of the image inside boxes in which RapidOCR recognizes at least two letters or digits
                with a confidence of 0.8, 0 to 1; boxes alone do not suffice, because its detector also finds
                round objects
    aesthetic   output of a linear head on a CLIP vision tower, or the probability of a class of a classifier
    nsfw        the probability of a class of a classifier

The table SCORES maps each name to a class. It is constructed with a model (None: its default) and maps a list
of RGB images to a list of values. Texts (phash) are stored under "hashes", numbers under "scores".
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.registry import SCORES

SHARP_SIDE = 512  # pixels of the longer side at which sharpness is measured
TEXT_SIDE = 960  # pixels of the longer side at which text is detected
CONFIDENCE, LETTERS = 0.8, 2  # at least, for text to count
RECIPES = {"sharpness": 2}  # version of the definition of a score; 1 for all others
DIGITS = 6  # of a stored number: further digits differ between machines

Metric = Callable[[Sequence[Image.Image]], list]


class Sharpness:
    """Variance of the Laplacian of the luma."""

    def __init__(self, model: str | None = None):
        _needs_no_model("sharpness", model)

    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        return [laplacian_variance(image) for image in images]


def laplacian_variance(image: Image.Image) -> float:
    """Return the variance of the 4-neighbor Laplacian of the luma at SHARP_SIDE; 0 below 3 pixels a side."""
    size = _fit_size(image.size, SHARP_SIDE)
    luma = image.convert("L")
    luma = luma if luma.size == size else luma.resize(size, Image.Resampling.BICUBIC)
    x = np.asarray(luma, np.float32)
    if min(x.shape) < 3:
        return 0.0
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1]  # the rest in place: allocating further arrays takes longer
    laplacian += x[1:-1, :-2]
    laplacian += x[1:-1, 2:]
    laplacian -= 4 * x[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


class Entropy:
    """Entropy of the histogram of the luma in bits."""

    def __init__(self, model: str | None = None):
        _needs_no_model("entropy", model)

    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        return [image.convert("L").entropy() for image in images]


class PerceptualHash:
    """imagehash's phash: the signs of the 8 x 8 lowest frequencies of a 32 x 32 luma about their median."""

    def __init__(self, model: str | None = None):
        _needs_no_model("phash", model)
        import imagehash

        self.hash = imagehash.phash

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [str(self.hash(image)) for image in images]


class TextArea:
    """Fraction of an image inside boxes of text that RapidOCR recognizes; overlaps count once."""

    def __init__(self, model: str | None = None):
        _needs_no_model("text_area", model)
        self.find = _text_detector()

    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        return [self.fraction(image) for image in images]

    def fraction(self, image: Image.Image) -> float:
        """Return the fraction of one image, 0 to 1."""
        image = _reduce(image, TEXT_SIDE)
        mask = Image.new("1", image.size)
        draw = ImageDraw.Draw(mask)
        for box in self.find(np.asarray(image)[:, :, ::-1]):  # RGB to BGR
            draw.polygon([tuple(map(float, corner)) for corner in box], fill=1)
        return float(np.asarray(mask).mean())


@cache
def _text_detector() -> Callable[[np.ndarray], Iterable]:
    """Return a function from BGR pixels to boxes of four corners; the package contains its models."""
    try:
        from rapidocr import RapidOCR

        reader = RapidOCR(params={"Global.log_level": "critical"})

        def find(pixels: np.ndarray) -> Iterable:
            output = reader(pixels, use_det=True, use_cls=False, use_rec=True)
            found = (
                zip(output.boxes, output.txts, output.scores, strict=True) if output.boxes is not None else ()
            )
            return [
                box
                for box, text, confidence in found
                if confidence >= CONFIDENCE and sum(map(str.isalnum, text)) >= LETTERS
            ]

        find(np.zeros((64, 64, 3), np.uint8))
    except ImportError as error:  # of the package, or of the runtime that it imports for its first image
        raise MissingDependency("text_area needs RapidOCR: `pip install 'lumina-cli[ocr]'`") from error
    return find


def open_metrics(names: Iterable[str], models: dict[str, str] | None = None) -> dict[str, Metric]:
    """Return the metric of each name; `models` maps names of metrics to hub ids or folders.

    Raises:
        UsageError: if a name is unknown, or a model is given for a metric without one.
        LuminaError: if a model cannot be read.
        MissingDependency: if a package is not installed.
    """
    models, names = models or {}, list(dict.fromkeys(names))
    if unused := sorted(set(models) - set(names)):
        name, known = unused[0], ", ".join(names)
        raise UsageError(f"--model {name}={models[name]}: {name!r} is not in --scores ({known})")
    return {name: SCORES.load(name)(models.get(name)) for name in names}


def measure(images: Sequence[Image.Image], metrics: dict[str, Metric]) -> list[dict]:
    """Return a partial row per RGB image: {"scores": {name: number}, "hashes": {name: text}}."""
    rows: list[dict] = [{} for _ in images]
    for name, metric in metrics.items():
        for row, value in zip(rows, metric(images), strict=True):
            kind, value = ("hashes", value) if isinstance(value, str) else ("scores", round(value, DIGITS))
            row.setdefault(kind, {})[name] = value
    return rows


def _reduce(image: Image.Image, longest: int) -> Image.Image:
    """Return the image with at most `longest` pixels on its longer side, box-filtered."""
    if max(image.size) <= longest:
        return image
    return image.resize(_fit_size(image.size, longest), Image.Resampling.BOX)


def _fit_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return a size of the same aspect ratio with `longest` pixels on its longer side."""
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _needs_no_model(name: str, model: str | None) -> None:
    if model is not None:
        raise UsageError(f"--model {name}={model}: score {name!r} takes no model; omit it")

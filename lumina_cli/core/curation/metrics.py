"""What can be measured of a picture, each once: numbers that are stored, so that thresholds may come later.

    sharpness   variance of the Laplacian (0 1 0, 1 -4 1, 0 1 0) of the luma, 0 to 255, without the outermost
                pixels, of the picture with 512 pixels on its longer side: larger ones are reduced to it and
                smaller ones enlarged, or else a thumbnail would be sharper than what it was made of
    entropy     of the histogram of the luma, in bits: 0 for one grey, 8 at most
    phash       perceptual hash, 64 bits as 16 hex digits (imagehash): near copies differ in few bits
    text_area   share of the picture that is inside boxes in which RapidOCR reads at least two letters or
                digits with a confidence of 0.8, 0 to 1; boxes alone are not enough: its detector takes round
                things for text
    aesthetic   of a CLIP vision tower with a linear head, or the share of a class of a classifier
    nsfw        the share of a class of a classifier

A table `SCORES` leads from each name to a class that is made with a model (None: its own choice) and maps a
list of RGB pictures to a list of values. What is text (phash) is kept under "hashes", numbers under "scores".
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.registry import SCORES

SHARP_SIDE = 512  # pixels of the longer side at which sharpness is measured
TEXT_SIDE = 960  # pixels of the longer side at which text is looked for
SURE, LETTERS = 0.8, 2  # of what counts as read
RECIPES = {"sharpness": 2}  # of scores whose numbers once were made otherwise; of all others it is 1
DIGITS = 6  # of a stored number: more would differ between machines

Metric = Callable[[Sequence[Image.Image]], list]


class Sharpness:
    """Variance of the Laplacian of the luma."""

    def __init__(self, model: str | None = None):
        _needs_no_model("sharpness", model)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        return [laplacian_variance(picture) for picture in pictures]


def laplacian_variance(picture: Image.Image) -> float:
    """Return the variance of the 4-neighbour Laplacian of the luma at SHARP_SIDE; 0 for a mere line."""
    size = _fitting(picture.size, SHARP_SIDE)
    luma = picture.convert("L")
    luma = luma if luma.size == size else luma.resize(size, Image.Resampling.BICUBIC)
    x = np.asarray(luma, np.float32)
    if min(x.shape) < 3:
        return 0.0
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1]  # the rest in place: each further array costs its pages
    laplacian += x[1:-1, :-2]
    laplacian += x[1:-1, 2:]
    laplacian -= 4 * x[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


class Entropy:
    """Entropy of the histogram of the luma in bits."""

    def __init__(self, model: str | None = None):
        _needs_no_model("entropy", model)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        return [picture.convert("L").entropy() for picture in pictures]


class PerceptualHash:
    """imagehash's phash: the signs of the 8 x 8 lowest frequencies of a 32 x 32 luma about their median."""

    def __init__(self, model: str | None = None):
        _needs_no_model("phash", model)
        import imagehash

        self.hash = imagehash.phash

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        return [str(self.hash(picture)) for picture in pictures]


class TextArea:
    """Share of a picture that lies in boxes of text that RapidOCR can read; overlaps count once."""

    def __init__(self, model: str | None = None):
        _needs_no_model("text_area", model)
        self.find = _text_detector()

    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        return [self.share(picture) for picture in pictures]

    def share(self, picture: Image.Image) -> float:
        """Return the share of one picture."""
        picture = _reduced(picture, TEXT_SIDE)
        mask = Image.new("1", picture.size)
        draw = ImageDraw.Draw(mask)
        for box in self.find(np.asarray(picture)[:, :, ::-1]):  # it reads BGR
            draw.polygon([tuple(map(float, corner)) for corner in box], fill=1)
        return float(np.asarray(mask).mean())


@cache
def _text_detector() -> Callable[[np.ndarray], Iterable]:
    """A function from BGR pixels to boxes of four corners; the models come with the package."""
    try:
        from rapidocr import RapidOCR

        reader = RapidOCR(params={"Global.log_level": "critical"})

        def find(pixels: np.ndarray) -> Iterable:
            told = reader(pixels, use_det=True, use_cls=False, use_rec=True)
            found = zip(told.boxes, told.txts, told.scores, strict=True) if told.boxes is not None else ()
            return [
                box for box, text, sure in found if sure >= SURE and sum(map(str.isalnum, text)) >= LETTERS
            ]

        find(np.zeros((64, 64, 3), np.uint8))
    except ImportError as error:  # of the package, or of the runtime that it looks for at its first picture
        raise MissingDependency("text_area needs RapidOCR: `pip install 'lumina-cli[ocr]'`") from error
    return find


def open_metrics(names: Iterable[str], models: dict[str, str] | None = None) -> dict[str, Metric]:
    """Return what measures each of `names`; `models` gives hub ids or folders to those that have a model.

    UsageError for an unknown name, or a model for what has none; MissingPart where a package is not there.
    """
    models, names = models or {}, list(dict.fromkeys(names))
    if unused := sorted(set(models) - set(names)):
        raise UsageError(f"a model for {unused[0]}, which is not among the scores {', '.join(names)}")
    return {name: SCORES.load(name)(models.get(name)) for name in names}


def measure(pictures: Sequence[Image.Image], scorers: dict[str, Metric]) -> list[dict]:
    """Return a partial row per RGB picture: {"scores": {name: number}, "hashes": {name: text}}."""
    rows: list[dict] = [{} for _ in pictures]
    for name, scorer in scorers.items():
        for row, value in zip(rows, scorer(pictures), strict=True):
            kind, value = ("hashes", value) if isinstance(value, str) else ("scores", round(value, DIGITS))
            row.setdefault(kind, {})[name] = value
    return rows


def _reduced(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side at `longest` pixels, by areas; smaller ones stay as they are."""
    if max(picture.size) <= longest:
        return picture
    return picture.resize(_fitting(picture.size, longest), Image.Resampling.BOX)


def _fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape with its longer side at `longest` pixels."""
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _needs_no_model(name: str, model: str | None) -> None:
    if model is not None:
        raise UsageError(f"{name} is computed without a model; leave {model} out")

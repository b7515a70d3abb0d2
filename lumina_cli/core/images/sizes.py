"""Image sizes as given by users: 1024x768, 512, 16:9, portrait@512."""

import math
import re

from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.buckets import MAX_RATIO, PATCH, best_size

SHAPES = {"square": (1, 1), "landscape": (4, 3), "portrait": (3, 4), "wide": (16, 9), "tall": (9, 16)}
NEAR = 0.06  # largest difference of a training size from a ratio, as a natural logarithm
LARGER = 1.06  # largest area of other sizes, as a multiple of that of the square
AREA_WEIGHT = 0.25
RATIO = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
HINT = f"WIDTHxHEIGHT, such as 1024x768, a ratio such as 16:9, or one of {', '.join(SHAPES)}"

Size = str | int | tuple[int, int] | None


def parse_ratio(size: Size) -> tuple[float, float, int | None] | None:
    """Return (width, height, resolution or None) of an aspect ratio or its name; None for any other size.

    "16:9@512" is that ratio with the area of a 512-pixel square.

    Raises:
        UsageError: if a side of the ratio is zero, or the resolution is not a number.
    """
    if not isinstance(size, str):
        return None
    shape, _, resolution = size.strip().lower().partition("@")
    found = RATIO.fullmatch(shape)
    sides = SHAPES.get(shape) or (found and (float(found[1]), float(found[2])))
    if not sides:
        return None
    if min(sides) == 0 or (resolution and not resolution.isdecimal()) or size.endswith("@"):
        raise UsageError(f"size {size!r} is not {HINT}")
    return (*sides, int(resolution) if resolution else None)


def fit_ratio(ratio: tuple[float, float, int | None], resolution: int, step: int = PATCH) -> tuple[int, int]:
    """Return the size closest to a ratio, with about the area of a square of `resolution` pixels.

    It is a training size if the ratio of one is within NEAR of the requested ratio. Small models have only
    few training sizes; for them it is the nearest size whose sides are multiples of `step`.

    Raises:
        UsageError: if the resolution is not a multiple of 64.
    """
    width, height, resolution = ratio[0], ratio[1], ratio[2] or resolution
    trained = best_size(width, height, resolution)
    if _log_ratio(*trained, width / height) <= NEAR or not 1 / MAX_RATIO <= width / height <= MAX_RATIO:
        return trained
    sizes = []
    for columns in range(1, int(MAX_RATIO * resolution) // step):
        rows = columns * height / width
        sizes += [(columns * step, max(1, whole) * step) for whole in (int(rows), int(rows) + 1)]
    sizes = [size for size in sizes if size[0] * size[1] <= LARGER * resolution**2]
    return min(sizes, key=lambda size: _size_cost(size, width / height, resolution))


def _log_ratio(width: float, height: float, ratio: float) -> float:
    return abs(math.log(width / height / ratio))


def _size_cost(size: tuple[int, int], ratio: float, resolution: int) -> tuple[float, int]:
    """How far a size is from a ratio and, less important, from an area; of equal ones the larger is first."""
    area = size[0] * size[1]
    return _log_ratio(*size, ratio) + AREA_WEIGHT * abs(math.log(area / resolution**2)), -area


def parse_size(size: Size, step: int = 16, widest: int = 8192, highest: int = 8192) -> tuple[int, int]:
    """Return (width, height) in pixels of "WIDTHxHEIGHT", one number or a pair.

    Raises:
        UsageError: if the size is malformed, a side is not a multiple of `step`, or a side exceeds `widest`
            or `highest`; the message names the nearest valid sizes.
    """
    if isinstance(size, str):
        words = size.lower().replace("×", "x").split("x")
        if len(words) > 2 or not all(word.strip().isdecimal() for word in words):
            raise UsageError(f"size {size!r} is not {HINT}")
        sides = [int(word) for word in words]
    else:
        sides = list(size) if isinstance(size, list | tuple) else [size]
        if len(sides) not in (1, 2) or not all(type(side) is int for side in sides):
            raise UsageError(f"size {size!r} is not {HINT}")
    width, height = sides * 2 if len(sides) == 1 else sides
    for name, side, most in (("width", width, widest), ("height", height, highest)):
        if side % step or not 0 < side <= most:
            below = min(max(side // step * step, step), most)
            near = [below] if side < below or side > most else [below, below + step]
            raise UsageError(
                f"size {width}x{height}: {name} {side} is not a multiple of {step} up to {most}; "
                f"nearest: {' or '.join(map(str, near))}"
            )
    return width, height

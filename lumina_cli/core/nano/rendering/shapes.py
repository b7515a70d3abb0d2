"""The sixteen kinds of objects as signed distance functions, and the colors of tints and backdrops.

Each shape maps coordinates (R,) in the frame of the object (foot at the origin, about one unit high, x to its
right, z to its front) to a list of parts (distance, color); color None is the tint of the object. A distance
may be smaller than the exact one but never larger, because the ray marcher steps by it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Colour = tuple[float, float, float]
Parts = list[tuple[Tensor, Colour | None]]

TINT_COLOURS: dict[str, Colour] = {
    "red": (0.82, 0.09, 0.09), "orange": (0.97, 0.49, 0.06), "yellow": (0.96, 0.83, 0.10),
    "green": (0.12, 0.58, 0.17), "blue": (0.11, 0.29, 0.86), "purple": (0.49, 0.15, 0.72),
    "pink": (0.98, 0.46, 0.73), "brown": (0.43, 0.25, 0.13), "black": (0.06, 0.06, 0.07),
    "white": (0.94, 0.94, 0.94),
}  # fmt: skip
BACKDROP_COLOURS: dict[str, Colour] = {
    "sky": (0.66, 0.83, 0.97), "sand": (0.88, 0.80, 0.64), "mint": (0.72, 0.89, 0.75),
    "rose": (0.94, 0.77, 0.81), "slate": (0.51, 0.57, 0.69), "mist": (0.80, 0.82, 0.86),
}  # fmt: skip
CREAM, WOOD, DARK, GLASS, STEEL = (
    (0.90, 0.86, 0.76),
    (0.45, 0.28, 0.15),
    (0.10, 0.10, 0.11),
    (0.82, 0.88, 0.92),
    (0.84, 0.85, 0.87),
)


def length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return total.sqrt()


def least(parts: Sequence[Tensor]) -> Tensor:
    least = parts[0]
    for part in parts[1:]:
        least = torch.minimum(least, part)
    return least


def _box(x, y, z, size: Colour, rounding: float = 0.02) -> Tensor:
    """Return the distance to a box around the origin with half sides `size`."""
    dx, dy, dz = (
        x.abs() - (size[0] - rounding),
        y.abs() - (size[1] - rounding),
        z.abs() - (size[2] - rounding),
    )
    outside = length(dx.clamp(min=0), dy.clamp(min=0), dz.clamp(min=0))
    return outside + torch.maximum(dx, torch.maximum(dy, dz)).clamp(max=0) - rounding


def _extrude(flat: Tensor, z: Tensor, half: float, rounding: float = 0.03) -> Tensor:
    """Extrude a flat shape, given by its distance, along z."""
    a, b = flat + rounding, z.abs() - (half - rounding)
    return length(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0) - rounding


def _pillar(q, y, radius: float, low: float, high: float, rounding: float = 0.02) -> Tensor:
    """Return the distance to an upright cylinder; q is the distance from its axis."""
    return _extrude(q - radius, y - (low + high) / 2, (high - low) / 2, rounding)


def _cone(q, y, low: float, high: float, wide: float, narrow: float = 0.0) -> Tensor:
    """Return a lower bound of the distance to an upright (truncated) cone between `low` and `high`."""
    rise, run = high - low, wide - narrow
    slope = ((q - wide) * rise + (y - low) * run) / math.hypot(rise, run)
    return torch.maximum(slope, torch.maximum(low - y, y - high))


def ball(x, y, z) -> Parts:
    return [(length(x, y - 0.5, z) - 0.5, None)]


def cube(x, y, z) -> Parts:
    return [(_box(x, y - 0.41, z, (0.41, 0.41, 0.41), 0.03), None)]


def cylinder(x, y, z) -> Parts:
    return [(_pillar(length(x, z), y, 0.35, 0.0, 1.02, 0.03), None)]


def cone(x, y, z) -> Parts:
    return [(_cone(length(x, z), y, 0.0, 1.12, 0.48), None)]


def ring(x, y, z) -> Parts:
    return [(length(length(x, y - 0.54) - 0.38, z) - 0.155, None)]


def star(x, y, z) -> Parts:
    """A five-pointed star: the plane is folded onto half a point, which has one edge."""
    px, py = x.abs(), y - 0.54
    for angle in (108, 36):  # mirrors between neighbouring points, the lower one first
        nx, ny = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
        fold = 2 * (px * nx + py * ny).clamp(min=0)
        px, py = px - fold * nx, py - fold * ny
    px = px.abs()
    tip, notch = 0.56, 0.25
    ex, ey = notch * math.sin(math.radians(36)), notch * math.cos(math.radians(36))
    long = math.hypot(ex, tip - ey)
    flat = (px * (tip - ey) + (py - tip) * ex) / long
    return [(_extrude(flat, z, 0.15, 0.04), None)]


def heart(x, y, z) -> Parts:
    """A heart: two discs on the upper sides of a square that is rotated by 45 degrees."""
    px, py = x.abs(), y - 0.05
    half = 0.29
    u, v = (
        (px + py) * math.sqrt(0.5),
        (py - px) * math.sqrt(0.5),
    )  # the square's own axes, corner at the origin
    du, dv = (u - half).abs() - half, (v - half).abs() - half
    square = length(du.clamp(min=0), dv.clamp(min=0)) + torch.maximum(du, dv).clamp(max=0)
    disc = length(u - 2 * half, v - half) - half
    return [(_extrude(torch.minimum(square, disc) - 0.02, z, 0.18, 0.08), None)]


def house(x, y, z) -> Parts:
    ax, az = x.abs(), z.abs()
    roof = torch.maximum((torch.maximum(ax, az) + y - 1.06) * math.sqrt(0.5), 0.52 - y)
    door = _box(x, y - 0.17, z - 0.36, (0.09, 0.17, 0.02), 0.005)
    window = _box(ax - 0.22, y - 0.32, z - 0.36, (0.07, 0.07, 0.02), 0.005)
    walls = _box(x, y - 0.28, z, (0.36, 0.28, 0.36), 0.01)
    return [(roof, None), (walls, CREAM), (door, WOOD), (window, DARK)]


def tree(x, y, z) -> Parts:
    q = length(x, z)
    crown = torch.minimum(_cone(q, y, 0.22, 0.80, 0.47), _cone(q, y, 0.58, 1.2, 0.36))
    return [(crown, None), (_pillar(q, y, 0.09, 0.0, 0.3), WOOD)]


def mushroom(x, y, z) -> Parts:
    q = length(x, z)
    cap = torch.maximum(length(x, y - 0.42, z) - 0.5, 0.42 - y)
    return [(cap, None), (_pillar(q, y, 0.17, 0.0, 0.5), CREAM)]


def car(x, y, z) -> Parts:
    ax, az = x.abs(), z.abs()
    wheel = _extrude(length(ax - 0.33, y - 0.14) - 0.14, az - 0.26, 0.06, 0.02)
    cabin = _box(x + 0.04, y - 0.5, z, (0.27, 0.15, 0.23), 0.07)
    roof = _box(x + 0.04, y - 0.64, z, (0.23, 0.035, 0.2), 0.03)
    body = _box(x, y - 0.28, z, (0.56, 0.15, 0.29), 0.07)
    return [(torch.minimum(body, roof), None), (cabin, GLASS), (wheel, DARK)]


def boat(x, y, z) -> Parts:
    hull = torch.maximum((length(x / 0.6, (y - 0.36) / 0.36, z / 0.28) - 1) * 0.28, y - 0.32)
    mast = _pillar(length(x, z), y, 0.03, 0.2, 1.16, 0.01)
    lean = ((x.abs() - 0.42) * 0.72 + (y - 0.42) * 0.42) / math.hypot(0.72, 0.42)
    sail = _extrude(torch.maximum(lean, 0.42 - y), z, 0.04, 0.015)
    return [(sail, None), (hull, WOOD), (mast, WOOD)]


def cup(x, y, z) -> Parts:
    q = length(x, z)
    body = torch.maximum(_pillar(q, y, 0.38, 0.0, 0.86, 0.03), torch.maximum(q - 0.31, 0.08 - y).neg())
    handle = length(length(x - 0.4, y - 0.44) - 0.2, z) - 0.06
    return [(torch.minimum(body, torch.maximum(handle, 0.34 - q)), None)]


def lamp(x, y, z) -> Parts:
    q = length(x, z)
    stand = torch.minimum(_pillar(q, y, 0.045, 0.0, 0.7), _pillar(q, y, 0.27, 0.0, 0.08))
    return [(_cone(q, y, 0.52, 1.1, 0.52, 0.22), None), (stand, DARK)]


def snowman(x, y, z) -> Parts:
    q = length(x, z)
    body = torch.minimum(length(x, y - 0.34, z) - 0.36, length(x, y - 0.82, z) - 0.25)
    hat = torch.minimum(_pillar(q, y, 0.15, 1.0, 1.24), _pillar(q, y, 0.24, 0.98, 1.03, 0.01))
    eyes = length(x.abs() - 0.09, y - 0.88, z - 0.23) - 0.035
    return [(body, None), (hat, DARK), (eyes, DARK)]


def rocket(x, y, z) -> Parts:
    q = length(x, z)
    fin = torch.maximum(length(torch.maximum(x.abs(), z.abs()) - 0.2, y - 0.12) - 0.26, 0.02 - y)
    fins = torch.maximum(fin, torch.minimum(x.abs(), z.abs()) - 0.045)
    nose = _cone(q, y, 0.8, 1.26, 0.24)
    port = length(x, y - 0.6, z - 0.22) - 0.09
    return [(torch.minimum(nose, fins), None), (_pillar(q, y, 0.22, 0.1, 0.82), STEEL), (port, DARK)]


SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], Parts]] = {
    shape.__name__: shape
    for shape in (
        ball, cube, cylinder, cone, ring, star, heart, house,
        tree, mushroom, car, boat, cup, lamp, snowman, rocket,
    )
}  # fmt: skip


def distance(kind: str, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the distance (R,) to the nearest part of a kind."""
    return least([part for part, _ in SHAPES[kind](x, y, z)])

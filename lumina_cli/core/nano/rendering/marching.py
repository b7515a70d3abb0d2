"""Ray marching through signed distance functions; R rays at a time.

All arithmetic is elementwise float32 in a fixed order, so images have the same pixels in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lumina_cli.core.nano.rendering.shapes import distance, length
from lumina_cli.core.nano.scene import Thing

BOUND = (0.57, 0.84)  # height and radius of a ball that contains every object of size 1
STEPS, SHADOW_STEPS, CLOSE = 34, 18, 0.004


@dataclass(frozen=True)
class Rays:
    """R rays in the frame of the object that they may hit: origin and unit direction, each (R,)."""

    ox: Tensor
    oy: Tensor
    oz: Tensor
    dx: Tensor
    dy: Tensor
    dz: Tensor

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.ox + t * self.dx, self.oy + t * self.dy, self.oz + t * self.dz

    def pick(self, index: Tensor) -> "Rays":
        return Rays(*(part[index] for part in (self.ox, self.oy, self.oz, self.dx, self.dy, self.dz)))


def to_object_frame(things: Sequence[Thing], owner: Tensor, origin, direction) -> Rays:
    """Transform world rays into the frames of things[owner]: translate, rotate back, divide by the size."""
    rows = [
        (t.x, t.y, t.z, 1 / t.size, math.cos(math.radians(t.turn)), math.sin(math.radians(t.turn)))
        for t in things
    ]
    px, py, pz, scale, cos, sin = torch.tensor(rows, dtype=torch.float32).T[:, owner]
    x, y, z = origin[0] - px, origin[1] - py, origin[2] - pz
    dx, dy, dz = direction
    return Rays(
        (cos * x - sin * z) * scale,
        y * scale,
        (sin * x + cos * z) * scale,
        cos * dx - sin * dz,
        dy,
        sin * dx + cos * dz,
    )


def ball_interval(rays: Rays, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return entry and exit distances of the bounding ball, and whether rays hit it, each (R,)."""
    oy = rays.oy - BOUND[0]
    b = rays.ox * rays.dx + oy * rays.dy + rays.oz * rays.dz
    c = rays.ox * rays.ox + oy * oy + rays.oz * rays.oz - radius * radius
    root = b * b - c
    half = root.clamp(min=0).sqrt()
    return (-b - half).clamp(min=0), -b + half, (root > 0) & (-b + half > 0)


def march(kind: str, rays: Rays, near: Tensor, far: Tensor) -> Tensor:
    """Return the distance at which each ray hits the shape, (R,); infinity if it does not."""
    hit = torch.full_like(near, torch.inf)
    alive, t, end = torch.arange(len(near)), near, far
    for step in range(STEPS):
        d = distance(kind, *rays.at(t))
        if step % 3 == 2 or step == STEPS - 1:  # testing for hits costs more than marching, so not each step
            met = d < CLOSE
            hit[alive[met]] = t[met]
            go = (~met & (t + d < end)).nonzero()[:, 0]
            if not len(go):
                break
            alive, t, end, d, rays = alive[go], t[go], end[go], d[go], rays.pick(go)
        t = t + d.clamp(min=0.0) * 0.96
    return hit


def light_along(kind: str, rays: Rays, near: Tensor, far: Tensor) -> Tensor:
    """Return the fraction of light that arrives along shadow rays, (R,); near misses give soft edges."""
    light = torch.ones_like(near)
    t = near
    for _ in range(SHADOW_STEPS):
        d = distance(kind, *rays.at(t))
        light = torch.where(t < far, torch.minimum(light, 10 * d / t.clamp(min=0.3)), light)
        t = t + d.clamp(min=0.05, max=0.25)
    light = light.clamp(0, 1)
    return light * light * (3 - 2 * light)


def surface_normal(kind: str, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outward surface normal, from four nearby distances (tetrahedron method)."""
    nx = ny = nz = torch.zeros_like(x)
    for sx, sy, sz in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        d = distance(kind, x + 0.003 * sx, y + 0.003 * sy, z + 0.003 * sz)
        nx, ny, nz = nx + sx * d, ny + sy * d, nz + sz * d
    size = length(nx, ny, nz).clamp(min=1e-12)
    return nx / size, ny / size, nz / size

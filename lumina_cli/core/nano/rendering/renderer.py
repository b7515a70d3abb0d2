"""Renderer of nano scenes: signed distance functions, one camera, a floor and a backdrop, soft shadows.

`render(scenes)` returns images with depth and masks. Camera rays are marched only within the screen bounds of
their object, batched over all objects of one kind; the floor is intersected in closed form; shadow rays start
only where they can hit an object. All arithmetic is elementwise float32 in a fixed order and is rounded once,
at the end.

S scenes, R rays, P pixels of an image, W visible surface points. Objects are supersampled 2 x 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.nano.rendering.marching import (
    BOUND,
    ball_interval,
    light_along,
    march,
    surface_normal,
    to_object_frame,
)
from lumina_cli.core.nano.rendering.shapes import BACKDROP_COLOURS, SHAPES, TINT_COLOURS, length
from lumina_cli.core.nano.scene import Scene, Thing

EYE, TARGET, SPREAD = (0.0, 3.05, 6.3), (0.0, 0.68, 0.0), 0.21  # half the image height at distance 1
LIGHTS = {"left": (-0.52, 0.72, 0.46), "right": (0.52, 0.72, 0.46)}  # unit vectors towards the light, to 1e-3
FAR = 30.0


@dataclass(frozen=True)
class RenderedImage:
    """image: RGB; depth: (H, W) float32, world units along the ray; masks: (things, H, W) bool."""

    image: Image.Image
    depth: np.ndarray
    masks: np.ndarray


def _unit(vector: Sequence[float]) -> tuple[float, ...]:
    size = math.sqrt(sum(v * v for v in vector))
    return tuple(v / size for v in vector)


_FORWARD = _unit([b - a for a, b in zip(EYE, TARGET, strict=True)])
_RIGHT = (1.0, 0.0, 0.0)  # the camera looks straight down the z axis, tilted
_UP = (0.0, -_FORWARD[2], _FORWARD[1])


def project(x: float, y: float, z: float, size: int) -> tuple[float, float, float]:
    """Project a world point to (column, row, distance along the view) in an image of `size` pixels."""
    ox, oy, oz = x - EYE[0], y - EYE[1], z - EYE[2]
    ahead = oy * _FORWARD[1] + oz * _FORWARD[2]
    right, up = ox / ahead / SPREAD, (oy * _UP[1] + oz * _UP[2]) / ahead / SPREAD
    return (1 + right) * size / 2, (1 - up) * size / 2, ahead


def _directions(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unit directions of the camera rays through the centers of size x size pixels, each (P,)."""
    steps = ((torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1) * SPREAD
    up, right = (t.reshape(-1) for t in torch.meshgrid(-steps, steps, indexing="ij"))
    dx, dy, dz = right, _FORWARD[1] + up * _UP[1], _FORWARD[2] + up * _UP[2]
    norm = length(dx, dy, dz)
    return dx / norm, dy / norm, dz / norm


def _bounds(thing: Thing, size: int) -> tuple[int, int, int, int]:
    """Return the columns and rows (x0, x1, y0, y1) that the bounding ball of an object can touch."""
    column, row, ahead = project(thing.x, thing.y + BOUND[0] * thing.size, thing.z, size)
    radius = BOUND[1] * thing.size / ahead / SPREAD * size / 2 * 1.08 + 1
    edges = (column - radius, column + radius + 1, row - radius, row + radius + 1)
    return tuple(min(max(int(edge), 0), size) for edge in edges)


def _camera_rays(things: Sequence[Thing], members: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """Return (owner, pixel), each (R,): all pixels in the bounds of things[members[owner]]."""
    owners, pixels = [], []
    for owner, member in enumerate(members):
        x0, x1, y0, y1 = _bounds(things[member], size)
        grid = torch.arange(y0, y1)[:, None] * size + torch.arange(x0, x1)[None, :]
        pixels.append(grid.reshape(-1))
        owners.append(torch.full((grid.numel(),), owner))
    return torch.cat(owners), torch.cat(pixels)


@dataclass
class _Surface:
    """W visible points: object, pixel (over all scenes), world position, normal, color (W, 3), depth."""

    thing: Tensor
    pixel: Tensor
    place: tuple[Tensor, Tensor, Tensor]
    normal: tuple[Tensor, Tensor, Tensor]
    colour: Tensor
    depth: Tensor


def _visible(things: Sequence[Thing], scene_of: Tensor, size: int) -> _Surface:
    """March the rays of every object and keep the nearest hit of each pixel."""
    directions = _directions(size)
    kinds = sorted({thing.kind for thing in things})
    found = []
    for kind in kinds:
        members = [i for i, thing in enumerate(things) if thing.kind == kind]
        owner, pixel = _camera_rays(things, members, size)
        own = [things[i] for i in members]
        rays = to_object_frame(own, owner, EYE, tuple(direction[pixel] for direction in directions))
        near, far, meets = ball_interval(rays, BOUND[1])
        keep = meets.nonzero()[:, 0]
        t = march(kind, rays.pick(keep), near[keep], far[keep])
        hit = t.isfinite().nonzero()[:, 0]
        keep = keep[hit]
        scale = torch.tensor([thing.size for thing in own])[owner[keep]]
        found.append((torch.tensor(members)[owner[keep]], pixel[keep], t[hit] * scale))
    thing, pixel, depth = (torch.cat(part) for part in zip(*found, strict=True))
    pixel = scene_of[thing] * (size * size) + pixel
    nearest = torch.full((int(scene_of.max() + 1) * size * size,), FAR)
    nearest.scatter_reduce_(0, pixel, depth, "amin")
    won = (depth <= nearest[pixel]).nonzero()[:, 0]
    return _surface_of(
        things,
        kinds,
        thing[won],
        pixel[won],
        depth[won],
        tuple(w[pixel[won] % (size * size)] for w in directions),
    )


def _surface_of(things, kinds, thing, pixel, depth, direction) -> _Surface:
    """Compute color and normal of the visible points, kind by kind."""
    place = tuple(e + depth * w for e, w in zip(EYE, direction, strict=True))
    colour, normal = torch.zeros(len(thing), 3), torch.zeros(3, len(thing))
    kind_of = torch.tensor([kinds.index(t.kind) for t in things])[thing]
    tints = torch.tensor([TINT_COLOURS[t.tint] for t in things])
    turns = torch.tensor([(math.cos(math.radians(t.turn)), math.sin(math.radians(t.turn))) for t in things])
    for number, kind in enumerate(kinds):
        mine = (kind_of == number).nonzero()[:, 0]
        frame = to_object_frame(things, thing[mine], tuple(p[mine] for p in place), (0.0, 0.0, 0.0))
        x, y, z = frame.ox, frame.oy, frame.oz
        parts = SHAPES[kind](x, y, z)
        nearest = torch.stack([part for part, _ in parts]).argmin(0)
        for i, (_, fixed) in enumerate(parts):
            part = (nearest == i).nonzero()[:, 0]
            colour[mine[part]] = tints[thing[mine[part]]] if fixed is None else torch.tensor(fixed)
        nx, ny, nz = surface_normal(kind, x, y, z)
        cos, sin = turns[thing[mine]].T
        normal[:, mine] = torch.stack([cos * nx + sin * nz, ny, cos * nz - sin * nx])
    return _Surface(thing, pixel, place, tuple(normal), colour, depth)


def _possible_shadows(things: Sequence[Thing], owner: Tensor, place, to_light) -> Tensor:
    """Return indices of rays that may hit the ball of things[owner]: all hits and a few misses."""
    balls = [(t.x, t.y + BOUND[0] * t.size, t.z, (1.01 * BOUND[1] * t.size) ** 2) for t in things]
    x, y, z, reach = torch.tensor(balls, dtype=torch.float32).T[:, owner]
    x, y, z = x - place[0], y - place[1], z - place[2]
    along = x * to_light[0] + y * to_light[1] + z * to_light[2]
    distance2 = x * x + y * y + z * z
    return (((along > 0) & (distance2 - along * along < reach)) | (distance2 < reach)).nonzero()[:, 0]


def _light(scenes: Sequence[Scene], scene: Tensor, place: tuple[Tensor, ...]) -> Tensor:
    """Return the fraction of light at points (R,), shadowed by all objects of scenes[scene]."""
    light = torch.ones(len(scene))
    to_light = torch.tensor([LIGHTS[s.light] for s in scenes])[scene].T
    counts = torch.tensor([len(s.things) for s in scenes])[scene]
    for slot in range(max(len(s.things) for s in scenes)):
        here = (counts > slot).nonzero()[:, 0]
        things = [s.things[min(slot, len(s.things) - 1)] for s in scenes]
        here = here[
            _possible_shadows(things, scene[here], tuple(p[here] for p in place), tuple(to_light[:, here]))
        ]
        owner = scene[here]
        rays = to_object_frame(things, owner, tuple(p[here] for p in place), tuple(to_light[:, here]))
        near, far, meets = ball_interval(rays, BOUND[1])
        kinds = sorted({thing.kind for thing in things})
        kind_of = torch.tensor([kinds.index(thing.kind) for thing in things])[owner]
        for number, kind in enumerate(kinds):
            keep = (meets & (kind_of == number)).nonzero()[:, 0]
            if len(keep):
                light[here[keep]] *= light_along(kind, rays.pick(keep), near[keep], far[keep])
    return light


def _ground(scenes: Sequence[Scene], size: int) -> tuple[Tensor, Tensor]:
    """Return floor and backdrop of each scene with shadows: colors (S, P, 3), and depths (P,)."""
    dx, dy, dz = _directions(size)
    reach = torch.where(dy < -1e-3, -EYE[1] / dy.clamp(max=-1e-3), torch.tensor(FAR)).clamp(max=FAR)
    far = ((reach - 6.0) / 8.0).clamp(0, 1)
    far = far * far * (3 - 2 * far)
    height = (torch.arange(size).repeat_interleave(size) / size).to(torch.float32)  # 0 at the top
    base = torch.tensor([BACKDROP_COLOURS[s.backdrop] for s in scenes])[:, None]
    floor = base * (0.84 + 0.10 * (1 - height))[:, None]
    sky = base + (1 - base) * (0.32 * (1 - 2 * height).clamp(0, 1))[:, None]
    colour = floor + (sky - floor) * far[:, None]
    near = (reach < 10.5).nonzero()[:, 0]
    scene = torch.arange(len(scenes)).repeat_interleave(len(near))
    spots = near.repeat(len(scenes))
    place = (
        EYE[0] + reach[spots] * dx[spots],
        torch.full((len(spots),), 0.004),
        EYE[2] + reach[spots] * dz[spots],
    )
    shadow = 1 - _light(scenes, scene, place)
    colour[scene, spots] *= (1 - 0.5 * shadow)[:, None]
    return colour, reach


def _shaded(scenes: Sequence[Scene], scene: Tensor, surface: _Surface) -> Tensor:
    """Return the shaded colors (W, 3) of visible points: ambient sky, one light with shadows, a highlight."""
    lx, ly, lz = torch.tensor([LIGHTS[s.light] for s in scenes])[scene].T
    nx, ny, nz = surface.normal
    x, y, z = surface.place
    shade = _light(scenes, scene, (x + 0.03 * nx, y + 0.03 * ny, z + 0.03 * nz))
    direct = (nx * lx + ny * ly + nz * lz).clamp(min=0) * shade
    sky = 0.36 + 0.14 * ny + 0.06 * nz
    vx, vy, vz = EYE[0] - x, EYE[1] - y, EYE[2] - z
    norm = length(vx, vy, vz)
    hx, hy, hz = lx + vx / norm, ly + vy / norm, lz + vz / norm
    gloss = ((nx * hx + ny * hy + nz * hz) / length(hx, hy, hz)).clamp(min=0)
    for _ in range(5):  # the 32nd power
        gloss = gloss * gloss
    return surface.colour * (sky + 0.68 * direct)[:, None] + (0.28 * gloss * shade)[:, None]


def _masks(owner: Tensor, things: int) -> np.ndarray:
    """Return the masks (things, H, W) of pixels that an object covers at least half; ties go to the first."""
    counts = torch.stack([(owner == slot).sum((1, 3)) for slot in range(things)])
    return ((counts >= 2) & (counts.argmax(0) == torch.arange(things)[:, None, None])).numpy()


@torch.inference_mode()
def render(scenes: Sequence[Scene], size: int = 128) -> list[RenderedImage]:
    """Render scenes as size x size images; a scene has the same pixels in any batch."""
    fine, count = 2 * size, len(scenes)
    things = [thing for scene in scenes for thing in scene.things]
    scene_of = torch.tensor([i for i, scene in enumerate(scenes) for _ in scene.things])
    slot_of = torch.tensor([slot for scene in scenes for slot in range(len(scene.things))], dtype=torch.int8)
    ground, reach = _ground(scenes, size)
    surface = _visible(things, scene_of, fine)
    canvas = ground.view(count, size, 1, size, 1, 3).expand(-1, -1, 2, -1, 2, -1).reshape(-1, 3)
    canvas[surface.pixel] = _shaded(scenes, scene_of[surface.thing], surface)
    depth = reach.view(1, size, 1, size, 1).expand(count, -1, 2, -1, 2).reshape(-1)
    depth[surface.pixel] = surface.depth
    owner = torch.full((count * fine * fine,), -1, dtype=torch.int8)
    owner[surface.pixel] = slot_of[surface.thing]
    blocks = canvas.clamp(0, 1).view(count, size, 2, size, 2, 3)
    mean = (blocks[:, :, 0, :, 0] + blocks[:, :, 0, :, 1] + blocks[:, :, 1, :, 0] + blocks[:, :, 1, :, 1]) / 4
    pixels = (mean * 255).round().to(torch.uint8).numpy()
    depths = depth.view(count, size, 2, size, 2).amin((2, 4)).numpy()
    owners = owner.view(count, size, 2, size, 2)
    return [
        RenderedImage(Image.fromarray(pixels[i]), depths[i], _masks(owners[i], len(scene.things)))
        for i, scene in enumerate(scenes)
    ]

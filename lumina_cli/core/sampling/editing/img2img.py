"""Pictures from pictures: drawing goes on from a noised picture (SDEdit), or only in a mask (inpainting).

An edit is a plan that starts elsewhere: its times are those of the plan behind t0 = 1 - strength, its first
state is the picture's latents on their way from the noise, and outside a mask the velocity is the one that
leads back to the picture. Neither the network nor a solver knows.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan, interpolate
from lumina_cli.core.flow.path import velocity as straight
from lumina_cli.core.flow.solvers import Velocity
from lumina_cli.core.images.buckets import best_size
from lumina_cli.core.images.io import open_image
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest

STRENGTH = 0.6  # of an edit without a mask, if nobody says otherwise; with a mask it is 1
LARGEST = 1.25  # a picture keeps its size up to so many times the area that the model was made for
SEAM = 1 / 64  # of a picture's shorter side: how wide the soft edge of a mask is
CLOSE = 1e-6  # times nearer to each other than this are one


@dataclass(frozen=True)
class EditedPlan(Plan):
    """A plan that starts from a picture.

    start   the time at which it starts; 0 is the plan itself
    init    (1, C, H, W) latents of the picture
    anew    (1, 1, H, W) True where to draw; None is everywhere
    """

    start: float = 0.0
    init: Tensor | None = field(default=None, repr=False, compare=False)
    anew: Tensor | None = field(default=None, repr=False, compare=False)

    def plain(self) -> Plan:
        """Return the plan without the picture."""
        return Plan(**self.to_json())

    def to_json(self) -> dict:
        """Return the settings of the plan without the picture."""
        return {setting.name: getattr(self, setting.name) for setting in fields(Plan)}

    def times(self) -> list[float]:
        """Return `start` and the plan's times behind it; the plan's own if that is before the first."""
        times = self.plain().times()
        if self.start <= times[0]:
            return times
        return [self.start, *(t for t in times if t > self.start + CLOSE)]

    def skips_network(self, step: int) -> bool:
        """Whether the state stays as it is in a step: a still first one belongs to the noise."""
        return super().skips_network(step) and not self.start

    def solve(self, plain: Velocity, paired: Velocity, noise: Tensor) -> Iterator[Tensor]:
        """Yield the state after every step; see `Plan.solve`. From time 1 on, that is the picture alone."""
        init = self.init.to(noise)
        times = self.times()
        start = times[0] if self.start else 0.0
        x = interpolate(init, noise, start) if start else noise
        if len(times) == 1:
            yield x
            return
        yield from self.solve_from(plain, paired, x, times, partial(self._held, straight(init, noise)))

    def _held(self, back: Tensor, velocity: Velocity) -> Velocity:
        """Return `velocity`, but `back` outside the mask: the state stays on the straight path there."""
        if self.anew is None:
            return velocity
        anew = self.anew.to(back.device)
        return lambda x, t: torch.where(anew, velocity(x, t), back)


@dataclass(frozen=True)
class Edit:
    """A picture to start from, upright RGB, and a mask of its size, or None: white (255) is drawn anew."""

    picture: Image.Image
    strength: float
    mask: Image.Image | None = None
    name: str = "picture"
    mask_name: str | None = None

    def fitted(self, size: tuple[int, int]) -> tuple[Image.Image, Image.Image | None]:
        """Return picture and mask at `size` (width, height): scaled to cover it, the middle cut out."""
        if self.picture.size == size:
            return self.picture, self.mask
        mask = self.mask and ImageOps.fit(self.mask, size, Image.Resampling.NEAREST)
        return ImageOps.fit(self.picture, size, Image.Resampling.LANCZOS), mask

    def plan(self, plan: Plan, init: Tensor, anew: Tensor | None = None) -> EditedPlan:
        """Return `plan` as it starts from the latents of the picture."""
        return EditedPlan(**plan.to_json(), start=1 - self.strength, init=init, anew=anew)

    def settings(self) -> dict:
        """Return what a picture's metadata says of the edit: names, and fingerprints of the pixels."""
        found = {"init": self.name, "pixels": pixel_hash(self.picture), "strength": self.strength}
        if self.mask is not None:
            found |= {"mask": self.mask_name, "mask_pixels": pixel_hash(self.mask)}
        return found


def read_edit(init: str | Path, mask: str | Path | None = None, strength: float | None = None) -> Edit:
    """Read a picture and a mask, both turned upright.

    LuminaError where one cannot be read or the mask is black all over; UsageError where their sizes differ or
    `strength` is not from 0 (the picture) to 1 (the noise).
    """
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise UsageError(f"strength is {strength!r}, but must be from 0, the picture, to 1, pure noise")
    picture = open_image(init)
    if mask is None:
        return Edit(picture, float(strength), name=str(init))
    area = open_image(mask).convert("L").point(lambda level: 255 if level > 127 else 0)
    if area.size != picture.size:
        sizes = ["{}x{}".format(*one.size) for one in (area, picture)]
        raise UsageError(f"the mask {mask} is {sizes[0]}, but {init} is {sizes[1]}: make them one size")
    if area.getextrema()[1] == 0:
        raise LuminaError(f"the mask {mask} is black all over; white is what is drawn anew")
    return Edit(picture, float(strength), area, str(init), str(mask))


class EditingPipeline(Pipeline):
    """A pipeline whose pictures start from one picture; it draws at the size that fits that best.

    `note` is told, a line each, how the picture is scaled and cut. `edit_settings` belong into the metadata
    of what is drawn.
    """

    def __init__(self, pipeline: Pipeline, edit: Edit, note: Callable[[str], None] | None = None):
        self.__dict__.update(pipeline.__dict__)
        self.edit, self.note = edit, note or (lambda line: None)
        self.edit_settings = edit.settings()
        self.told: set[tuple[int, int]] = set()

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the picture is drawn at if nobody says otherwise."""
        return image_size(self.edit.picture.size, super().default_size, self.token_side)

    def draw_setup(
        self,
        jobs: Sequence[Job],
        setup: ResolvedRequest,
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch, each job from the same picture; see `Pipeline.draw_setup`."""
        size = size or self.default_size
        picture, mask = self.edit.fitted(size)
        self._tell(size)
        plan = self.edited(setup.plan, picture, mask)
        skipped = len(setup.plan.times()) - len(plan.times())

        def count(done: int, latents: Tensor) -> None:
            if on_step is not None:
                on_step(done + skipped, latents)

        drawn = super().draw_setup(jobs, replace(setup, plan=plan), size, count)
        feather = round(SEAM * min(size))
        return drawn if mask is None else [composite_original(one, picture, mask, feather) for one in drawn]

    def edited(self, plan: Plan, picture: Image.Image, mask: Image.Image | None) -> EditedPlan:
        """Return `plan` as it starts from a picture of the size that is drawn."""
        init = self.vae.encode(to_pixels(picture)).float()
        anew = None
        if mask is not None:  # a latent is drawn anew if any of its pixels is
            white = torch.from_numpy(np.asarray(mask) > 127).float()
            anew = adaptive_max_pool2d(white[None, None], init.shape[2:]).bool()
        return self.edit.plan(plan, init, anew)

    def _tell(self, size: tuple[int, int]) -> None:
        own = self.edit.picture.size
        if size != own and size not in self.told:
            scale = max(size[0] / own[0], size[1] / own[1])
            cut = [round(side * scale) - to for side, to in zip(own, size, strict=True)]
            lost = f", {max(cut)} pixels of its {'width' if cut[0] > cut[1] else 'height'} cut off"
            self.note(
                f"{self.edit.name}: {own[0]}x{own[1]} drawn at {size[0]}x{size[1]}{lost if max(cut) else ''}"
            )
        self.told.add(size)


def image_size(own: tuple[int, int], usual: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size to draw a picture of size `own` at by a model made for `usual`.

    Its own, if that is made of whole tokens (`side` pixels wide and high) and not much larger than usual;
    otherwise the size of training that keeps most of it.
    """
    fits = all(length % side == 0 for length in own)
    area = own[0] * own[1] / (usual[0] * usual[1])
    return own if fits and 1 / 4 <= area <= LARGEST else best_size(*own, resolution=usual[0])


def to_pixels(picture: Image.Image) -> Tensor:
    """Return pixels (1, 3, H, W) in [-1, 1] of an RGB picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def composite_original(
    drawn: Image.Image, picture: Image.Image, mask: Image.Image, feather: int
) -> Image.Image:
    """Return `picture` with what was drawn inside `mask`; outside, its pixels are the same bytes.

    The seam is soft over about `feather` pixels, all of them inside; a mask that is too narrow for that has a
    harder one, so that its middle is always what was drawn.
    """
    weight = np.zeros((mask.height, mask.width), np.float32)
    inner, rings = mask, 0
    while rings <= feather and inner.getextrema()[1]:
        weight += np.asarray(inner, np.float32) / 255
        inner = inner.filter(ImageFilter.MinFilter(3))
        rings += 1
    weight = (weight / rings)[..., None]
    old, new = np.asarray(picture, np.float32), np.asarray(drawn, np.float32)
    mixed = np.round(old + weight * (new - old)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.where(np.asarray(mask)[..., None] > 0, mixed, np.asarray(picture)))


def pixel_hash(picture: Image.Image) -> str:
    """Return a fingerprint of a picture's size, mode and pixels, whatever file they came in."""
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()[:16]

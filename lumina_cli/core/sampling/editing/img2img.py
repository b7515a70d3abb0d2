"""Image-to-image (SDEdit) and inpainting.

An edit is a plan with another start: it begins at t0 = 1 - strength and keeps the later times of the plan,
its first state interpolates between the noise and the latents of the image, and outside the mask the velocity
leads straight back to the image. Network and solvers need no changes.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan, interpolate
from lumina_cli.core.flow.path import velocity as straight
from lumina_cli.core.flow.solvers import Velocity
from lumina_cli.core.images.io import open_image, open_mask, png_bytes
from lumina_cli.core.images.sizes import fit_ratio
from lumina_cli.core.sampling.hooks import Batch, BatchHook, Components

STRENGTH = 0.6  # default without a mask; with a mask it is 1
LARGEST = 1.25  # an image keeps its size up to this multiple of the area that the model was trained for
SEAM = 1 / 64  # width of the soft edge of a mask, as a fraction of the image's shorter side
CLOSE = 1e-6  # times that are closer than this count as equal


@dataclass(frozen=True)
class EditedPlan(Plan):
    """A plan that starts from an image.

    start   the time at which it starts; 0 is the plan itself
    init    (1, C, H, W) latents of the image
    mask    (1, 1, H, W) True where to generate; None: everywhere
    """

    start: float = 0.0
    init: Tensor | None = field(default=None, repr=False, compare=False)
    mask: Tensor | None = field(default=None, repr=False, compare=False)

    def plain(self) -> Plan:
        """Return the plan without the image."""
        return Plan(**self.to_json())

    def to_json(self) -> dict:
        """Return the settings of the plan without the image."""
        return {setting.name: getattr(self, setting.name) for setting in fields(Plan)}

    def times(self) -> list[float]:
        """Return `start` and the later times of the plan; all of its times if `start` precedes them."""
        times = self.plain().times()
        if self.start <= times[0]:
            return times
        return [self.start, *(t for t in times if t > self.start + CLOSE)]

    def skips_network(self, step: int) -> bool:
        """Whether the state stays the same in a step; only a start from pure noise has such a first step."""
        return super().skips_network(step) and not self.start

    def solve(self, plain: Velocity, paired: Velocity, noise: Tensor) -> Iterator[Tensor]:
        """Yield the state after each step; see `Plan.solve`. A start at time 1 yields the image alone."""
        init = self.init.to(noise)
        times = self.times()
        start = times[0] if self.start else 0.0
        x = interpolate(init, noise, start) if start else noise
        if len(times) == 1:
            yield x
            return
        yield from self.solve_from(plain, paired, x, times, partial(self._held, straight(init, noise)))

    def _held(self, back: Tensor, velocity: Velocity) -> Velocity:
        """Return `velocity` inside the mask and `back` outside.

        `back` is constant along the straight path from the noise to the image, so the state stays on it.
        """
        if self.mask is None:
            return velocity
        mask = self.mask.to(back.device)
        return lambda x, t: torch.where(mask, velocity(x, t), back)


@dataclass(frozen=True)
class Edit:
    """An image to start from and an optional mask.

    image      upright, RGB
    strength   from 0, which returns the image, to 1, which starts from pure noise
    mask       mode L, of the size of the image; white (255) areas are regenerated
    """

    image: Image.Image
    strength: float
    mask: Image.Image | None = None
    name: str = "image"
    mask_name: str | None = None

    def fitted(self, size: tuple[int, int]) -> tuple[Image.Image, Image.Image | None]:
        """Return image and mask at `size` (width, height): scaled to cover it and center-cropped."""
        if self.image.size == size:
            return self.image, self.mask
        mask = self.mask and ImageOps.fit(self.mask, size, Image.Resampling.NEAREST)
        return ImageOps.fit(self.image, size, Image.Resampling.LANCZOS), mask

    def plan(self, plan: Plan, init: Tensor, mask: Tensor | None = None) -> EditedPlan:
        """Return `plan` with a start from the latents `init` (1, C, H, W) of the image."""
        return EditedPlan(**plan.to_json(), start=1 - self.strength, init=init, mask=mask)

    def settings(self) -> dict:
        """Return what image metadata contains as "edit": names, and fingerprints of the pixels."""
        found = {"init": self.name, "pixels": pixel_hash(self.image), "strength": self.strength}
        if self.mask is not None:
            found |= {"mask": self.mask_name, "mask_pixels": pixel_hash(self.mask)}
        return found


def read_edit(
    init: str | Path | Image.Image,
    mask: str | Path | Image.Image | None = None,
    strength: float | None = None,
    recorded: bool = False,
) -> Edit:
    """Read an image and a mask; both are rotated upright according to their EXIF data.

        strength   0 to 1; None: 0.6, or 1 with a mask
        recorded   whether the mask was used before, by a version that allowed an entirely white one

    Raises:
        UsageError: if the sizes of image and mask differ, or the strength is invalid.
        LuminaError: if a file cannot be read, or the mask is entirely black or white.
    """
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength <= 1:
        raise UsageError(f"strength must be between 0 (unchanged) and 1 (pure noise), not {strength!r}")
    image, name = open_image(_to_source("init", init)), _name_source(init)
    if mask is None:
        return Edit(image, float(strength), name=name)
    levels = open_mask(_to_source("mask", mask))
    area, mask = threshold_mask(levels), _name_source(mask)
    if area.size != image.size:
        sizes = ["{}x{}".format(*one.size) for one in (area, image)]
        raise UsageError(
            f"the mask {mask} is {sizes[0]}, but {name} is {sizes[1]}; they must have the same size"
        )
    low, high = area.getextrema()
    if high == 0 or (low == 255 and not recorded):
        raise LuminaError(_describe_uniform(mask, levels))
    return Edit(image, float(strength), area, name, mask)


def _describe_uniform(name: str, mask: Image.Image) -> str:
    """Return why a mask (mode L) without both black and white cannot be used; names its values."""
    values = [value for value, count in enumerate(mask.histogram()) if count]
    if values == [0]:
        return f"the mask {name} is entirely black; white areas are regenerated"
    if values == [255]:
        return f"the mask {name} is entirely white; omit it to regenerate the whole image"
    side, remedy = "white (above 127)", "omit it to regenerate the whole image"
    if values[0] <= 127:
        side, remedy = "black (below 128)", "scale them to 0 and 255"
    if len(values) == 1:
        return f"every pixel of the mask {name} is {values[0]}, which is {side}; white areas are regenerated"
    word = "and" if len(values) == 2 else "to"
    return f"the mask {name} has only the values {values[0]} {word} {values[-1]}, all {side}: {remedy}"


def threshold_mask(mask: Image.Image) -> Image.Image:
    """Return a mask (mode L) with only black and white."""
    return mask.point(lambda level: 255 if level > 127 else 0)


def _to_source(name: str, image: Any) -> str | Path | bytes:
    """Return what `open_image` reads; an image in memory as a file that keeps its pixels and its alpha."""
    if not isinstance(image, str | Path | Image.Image):
        kind = "an array" if hasattr(image, "shape") else type(image).__name__
        raise UsageError(f"{name} must be a file or a PIL image, not {kind}")
    return png_bytes(image) if isinstance(image, Image.Image) else image


def _name_source(image: str | Path | Image.Image) -> str:
    return str(getattr(image, "filename", "") or "image") if isinstance(image, Image.Image) else str(image)


class EditHook(BatchHook):
    """Starts each image of a pipeline from the same image.

    `note` is called with one line on how the image is scaled and cropped, once for each size.
    """

    def __init__(self, edit: Edit, note: Callable[[str], None] | None = None):
        self.edit, self.note = edit, note or (lambda line: None)
        self.settings = edit.settings()  # hashes pixels, so once
        self.noted: set[tuple[int, int]] = set()

    @property
    def edit_settings(self) -> dict:
        """What image metadata contains as "edit"."""
        return self.settings

    def default_size(self, size: tuple[int, int], token_side: int) -> tuple[int, int]:
        """Return the size to generate the image at, see `image_size`."""
        return image_size(self.edit.image.size, size, token_side)

    def prepare(self, pipeline: Components, batch: Batch) -> Batch:
        """Replace the plan by one that starts from the image."""
        image, mask = self.edit.fitted(batch.size)
        self._report_scaling(batch.size)
        original = batch.resolved.plan
        plan = self.edited(pipeline, original, image, mask)
        skipped = len(original.times()) - len(plan.times())

        def on_step(done: int, latents: Tensor) -> None:
            if batch.on_step is not None:
                batch.on_step(done + skipped, latents)  # count as the original plan does

        return replace(batch, resolved=replace(batch.resolved, plan=plan), on_step=on_step)

    def finish(self, pipeline: Components, batch: Batch, images: list[Image.Image]) -> list[Image.Image]:
        """Restore the pixels of the original outside the mask."""
        if self.edit.mask is None:
            return images
        original, mask = self.edit.fitted(batch.size)
        feather = round(SEAM * min(batch.size))
        return [composite_original(one, original, mask, feather) for one in images]

    def edited(
        self, pipeline: Components, plan: Plan, image: Image.Image, mask: Image.Image | None
    ) -> EditedPlan:
        """Return `plan` with a start from an image of the size to generate."""
        init = pipeline.vae.encode(to_pixels(image)).float()
        area = None
        if mask is not None:  # a latent is generated if any of its pixels is white
            white = torch.from_numpy(np.asarray(mask) > 127).float()
            area = adaptive_max_pool2d(white[None, None], init.shape[2:]).bool()
        return self.edit.plan(plan, init, area)

    def _report_scaling(self, size: tuple[int, int]) -> None:
        own = self.edit.image.size
        if size != own and size not in self.noted:
            scale = max(size[0] / own[0], size[1] / own[1])
            cut = [round(side * scale) - to for side, to in zip(own, size, strict=True)]
            lost = f", {max(cut)} pixels of its {'width' if cut[0] > cut[1] else 'height'} cropped"
            self.note(
                f"{self.edit.name}: {own[0]}x{own[1]} scaled to {size[0]}x{size[1]}{lost if max(cut) else ''}"
            )
        self.noted.add(size)


def image_size(own: tuple[int, int], default: tuple[int, int], token_side: int) -> tuple[int, int]:
    """Return the (width, height) to generate an image of size `own` at.

        default      size that the model was trained for
        token_side   width and height in pixels of an image token

    It is the image's own size if that is a multiple of `token_side` and not much larger than the default;
    otherwise the size with the nearest aspect ratio, see `fit_ratio`.
    """
    fits = all(length % token_side == 0 for length in own)
    area = own[0] * own[1] / (default[0] * default[1])
    return own if fits and 1 / 4 <= area <= LARGEST else fit_ratio((*own, None), default[0], token_side)


def to_pixels(image: Image.Image) -> Tensor:
    """Return pixels (1, 3, H, W) in [-1, 1] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def composite_original(
    generated: Image.Image, original: Image.Image, mask: Image.Image, feather: int
) -> Image.Image:
    """Return `original` with the generated pixels inside `mask`; outside, pixels are byte-identical.

    The blend is soft over about `feather` pixels, all of them inside the mask. The weight of a pixel is the
    number of erosions of the mask that it survives; erosion stops when nothing is left, so that the middle of
    a narrow mask is still fully generated.
    """
    weight = np.zeros((mask.height, mask.width), np.float32)
    inner, rings = mask, 0
    while rings <= feather and inner.getextrema()[1]:
        weight += np.asarray(inner, np.float32) / 255
        inner = inner.filter(ImageFilter.MinFilter(3))
        rings += 1
    weight = (weight / rings)[..., None]
    old, new = np.asarray(original, np.float32), np.asarray(generated, np.float32)
    mixed = np.round(old + weight * (new - old)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.where(np.asarray(mask)[..., None] > 0, mixed, np.asarray(original)))


def pixel_hash(image: Image.Image) -> str:
    """Return a fingerprint of an image's mode, size and pixels, independent of its file format."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]

"""A whole model: prompts to pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.device import compute_dtype, pick_device
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.encoders.text import MAX_TOKENS, TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.flow.path import shift_from_scheduler
from lumina_cli.core.formats.fingerprint import fingerprint
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.sampling.latents import draw_latents
from lumina_cli.core.sampling.models import Choice, choose_model, find_lumina_image_2, find_nano

__all__ = ["Job", "Pipeline", "find_lumina_image_2", "find_nano", "load_pipeline", "parse_size"]

SMALL_BYTES = 2**30  # weight files below this are fast in float32, where the batch does not show in a picture
BATCH_PIXELS = 2**21  # pictures drawn at once hold about this many pixels

PlanLike = Plan | Mapping | None
Size = str | int | tuple[int, int] | None


@dataclass(frozen=True)
class Job:
    """One picture to draw: its noise is the `number`-th of `seed`, whatever else is drawn beside it."""

    prompt: str
    seed: int = 0
    number: int = 0


class Pipeline:
    """The parts of a model folder, ready to draw.

    name, folder, reason     as `choose_model` found them
    weights                  their fingerprint: a run folder keeps its name while training changes them
    transformer, text, vae   the network, the text encoder, the autoencoder
    plan                     how this model draws if nobody says otherwise
    """

    def __init__(self, choice: Choice, transformer: NextDiT, text: TextEncoder, vae: Autoencoder, plan: Plan):
        self.name, self.folder, self.reason = choice.name, choice.folder, choice.reason
        self.weights = fingerprint(Path(choice.folder))
        self.transformer, self.text, self.vae, self.plan = transformer, text, vae, plan
        config = transformer.config
        if text.dim != config.text_dim or vae.channels != config.in_channels:
            raise LuminaError(
                f"{self.folder}: the parts do not fit: text features {text.dim} for a network that reads "
                f"{config.text_dim}, latent channels {vae.channels} for one that reads {config.in_channels}"
            )

    def __call__(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        count: int = 1,
        size: Size = None,
        system: str = "real",
        **settings,
    ) -> list[Image.Image]:
        """Draw `count` pictures for every prompt; `settings` change the plan: steps=8, solver="euler"...

        `size` is (width, height), "WIDTHxHEIGHT" or one number for a square; without it the model's own. An
        empty prompt draws whatever the system prompt alone asks for; as a row of `draw_rows` it is an error.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        jobs = [Job(text, seed, number) for text in prompts for number in range(count)]
        size, plan = self.size_for(size), self.plan_for(settings)
        batch = self.batch_for(size)
        groups = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
        return [picture for group in groups for picture in self.draw(group, plan, size, system)]

    def draw(
        self,
        jobs: Sequence[Job],
        plan: Plan | None = None,
        size: tuple[int, int] | None = None,
        system: str = "real",
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch: a picture for each job; see `draw_latents` for `on_step`."""
        width, height = size or self.default_size
        shape = (self.vae.channels, height // self.vae.factor, width // self.vae.factor)
        noise = torch.stack([draw_noise(job.seed, job.number, shape) for job in jobs])
        text, mask = self.text.encode([full_prompt(job.prompt, system) for job in jobs])
        latents = draw_latents(
            self.transformer,
            noise.to(text.device),
            text,
            mask,
            *self.empty_prompt,
            plan or self.plan,
            on_step,
        )
        return to_pictures(self.vae.decode(latents))

    @cached_property
    def empty_prompt(self) -> tuple[Tensor, Tensor]:
        """Features (1, 1, T) and mask of the empty prompt, which guidance moves away from."""
        return self.text.encode([""])

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the model was made for."""
        return (self.transformer.config.sample_size * self.vae.factor,) * 2

    def plan_for(self, plan: PlanLike) -> Plan:
        """Return `plan`, or the model's own plan with the settings in it changed."""
        if isinstance(plan, Plan):
            return plan
        return Plan.from_json({**self.plan.to_json(), **(plan or {})})

    def size_for(self, size: Size) -> tuple[int, int]:
        """Return width and height in pixels; UsageError where the model cannot draw that size."""
        if size is None:
            return self.default_size
        config = self.transformer.config
        step = self.vae.factor * config.patch_size
        return parse_size(size, step, step * config.axes_len[2], step * config.axes_len[1])

    def batch_for(self, size: tuple[int, int]) -> int:
        """Return how many pictures of a size to draw at once if nobody says otherwise."""
        return min(16, max(1, BATCH_PIXELS // (size[0] * size[1])))


def load_pipeline(
    name: str | Path | Choice = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """Load a model by name, folder or hub id; LuminaError names the part that is missing or damaged.

    Without `dtype` a network with weight files below 1 GiB, such as nano, computes in float32, a larger one
    in bfloat16 where the device has it. The autoencoder is always float32. In float32 a picture is the same
    whatever is drawn beside it, to one level of 255. In bfloat16 it starts from the same noise, but what is
    drawn beside it changes how sums are rounded, and so details; a batch of one depends on its prompt alone.
    """
    choice = name if isinstance(name, Choice) else choose_model(name)
    folder, device = choice.folder, pick_device(device)
    if dtype is None:
        size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
        dtype = torch.float32 if size < SMALL_BYTES else compute_dtype(device)
    with reading(folder / "transformer"):
        transformer = load_transformer(folder / "transformer", dtype=dtype, device=device).eval()
    with reading(folder / "text_encoder"):
        longest = min(MAX_TOKENS, transformer.config.max_text_tokens)
        text = TextEncoder(folder, device, dtype, longest)
    with reading(folder / "vae"):
        vae = Autoencoder(folder, device)
    return Pipeline(choice, transformer, text, vae, default_plan(folder))


def default_plan(folder: Path) -> Plan:
    """Return the plan in a model folder's plan.json, or else the default one with its scheduler's shift."""
    for name in ("plan.json", "scheduler/scheduler_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        with reading(path):
            settings = json.loads(path.read_text(encoding="utf-8"))
            plan = name == "plan.json"
            return Plan.from_json(settings) if plan else replace(Plan(), shift=shift_from_scheduler(settings))
    return Plan()


@contextmanager
def reading(path: Path):
    """Turn whatever goes wrong while a part is read into one line that names it."""
    try:
        yield
    except LuminaError as error:
        raise LuminaError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # safetensors, JSON, torch and transformers each raise their own kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LuminaError(f"{path} cannot be read: {reason}") from error


def parse_size(size: Size, step: int = 16, widest: int = 8192, highest: int = 8192) -> tuple[int, int]:
    """Return (width, height) of "WIDTHxHEIGHT", one number or a pair; UsageError names the sizes nearby.

    `step` is what a side must be a multiple of.
    """
    if isinstance(size, str):
        words = size.lower().replace("×", "x").split("x")
        if len(words) > 2 or not all(word.strip().isdecimal() for word in words):
            raise UsageError(f"size {size!r} is not WIDTHxHEIGHT, such as 1024x768")
        sides = [int(word) for word in words]
    else:
        sides = [size] if isinstance(size, int) else list(size)
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


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return 8-bit RGB pictures of pixels (B, 3, H, W) in [-1, 1]."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels.permute(0, 2, 3, 1).cpu()]

"""A whole model: prompts to pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.device import compute_dtype, pick_device
from lumina_cli.core.encoders.text import MAX_TOKENS, TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.kernels.choice import choose_kernel
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.sampling.cached import Cached, cache_for
from lumina_cli.core.sampling.features import Features
from lumina_cli.core.sampling.folder import ModelFolder, PlanLike, default_plan, reading
from lumina_cli.core.sampling.jobs import Job, Setup, Wish
from lumina_cli.core.sampling.latents import NotNumbers, draw_latents
from lumina_cli.core.sampling.models import Choice, choose_model
from lumina_cli.core.sampling.schedule import fitting
from lumina_cli.core.sampling.sizes import Size, parse_size

__all__ = ["Job", "Pipeline", "PlanLike", "default_plan", "load_pipeline", "parse_size"]

SMALL_BYTES = 2**30  # weight files below this are fast in float32, where the batch does not show in a picture


class Pipeline(ModelFolder):
    """The parts of a model folder, ready to draw.

    transformer, text, vae   the network, the text encoder, the autoencoder
    features                 what the text encoder made of the last strings
    in_turn                  whether only one part is in memory at a time: see `read_ahead`
    cache                    what left out main layers in the last draw, if its plan asked for that
    """

    def __init__(self, choice: Choice, transformer: NextDiT, text: TextEncoder, vae: Autoencoder):
        super().__init__(choice)
        self.transformer, self.text, self.vae = transformer, text, vae
        self.features = Features(lambda texts: text.encode(texts))  # looked up late: parts come and go
        self.cache: Cached | None = None
        self.in_turn = False
        config = transformer.config
        if text.dim != config.text_dim or vae.channels != config.in_channels:
            raise LuminaError(
                f"{self.folder}: the parts do not fit: text features {text.dim} for a network that reads "
                f"{config.text_dim}, latent channels {vae.channels} for one that reads {config.in_channels}"
            )

    @property
    def kernel(self) -> str:
        """Which attention the network calls; see `choose_kernel`."""
        network = self.transformer
        if network.kernel != "auto":
            return network.kernel
        return choose_kernel("auto", network.x_embedder.weight.device, network.dtype)

    def __call__(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        count: int = 1,
        size: Size = None,
        system: str = "real",
        negative: str = "",
        preset: str | Path | None = None,
        **settings,
    ) -> list[Image.Image]:
        """Draw `count` pictures for every prompt; `settings` change the plan: steps=8, solver="euler"...

        `size` is (width, height), "WIDTHxHEIGHT", "16:9" or one number for a square; without it the model's
        own. An empty prompt draws whatever the system prompt alone asks for; as a row of `draw_rows` it is an
        error.
        """
        wish = Wish(seed, count, size, settings, preset, system, negative)
        setup, sides = wish.resolve(self), self.size_for(size)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        jobs = [Job(text, seed, number, negative) for text in prompts for number in range(count)]
        batch = fitting(sides, self.longest_text, self.token_side)
        groups = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
        return [picture for group in groups for picture in self.draw_setup(group, setup, sides)]

    def read_ahead(self, jobs: Sequence[Job], setup: Setup) -> None:
        """Encode the texts of several batches at once, where the text encoder has to come back for each."""
        if self.in_turn:
            texts = [text for job in jobs for text in (setup.prompt(job), setup.negative(job))]
            for text in dict.fromkeys(texts):
                self.features.of([text])

    def draw(
        self,
        jobs: Sequence[Job],
        plan: Plan | None = None,
        size: tuple[int, int] | None = None,
        system: str = "real",
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch: a picture for each job; see `draw_latents` for `on_step`."""
        return self.draw_setup(jobs, Setup(plan or self.plan, system), size, on_step)

    def draw_setup(
        self,
        jobs: Sequence[Job],
        setup: Setup,
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch as `setup` says; LuminaError where its latents stop being numbers."""
        width, height = size or self.default_size
        shape = (self.vae.channels, height // self.factor, width // self.factor)
        noise = torch.stack([draw_noise(job.seed, job.number, shape) for job in jobs])
        text, mask = self.features.of([setup.prompt(job) for job in jobs])
        negatives = [setup.negative(job) for job in jobs]
        null = self.features.of(negatives if len(set(negatives)) > 1 else negatives[:1])

        self.cache = cache_for(setup.plan, self.folder, self.weights)
        try:
            latents = draw_latents(
                self.transformer, noise.to(text.device), text, mask, *null, setup.plan, on_step, self.cache
            )  # fmt: skip
        except NotNumbers as error:
            raise LuminaError(what_broke(error, setup.plan, jobs[error.row])) from error
        return to_pictures(self.vae.decode(latents))


def what_broke(error: NotNumbers, plan: Plan, job: Job) -> str:
    """Say, in one line, at which call of a plan a picture stopped being numbers."""
    calls = plan.calls()
    step = calls[error.call - 1].step + 1
    return (
        f"NaN or infinity in the latents of {job.prompt[:40]!r}, seed {job.seed}, at call {error.call} of "
        f"{len(calls)} (step {step}, t {error.t:.4f}); the weights are damaged, or the guidance is too strong"
    )


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
    dtype = dtype or usual_dtype(folder, device)
    with reading(folder / "transformer"):
        transformer = load_transformer(folder / "transformer", dtype=dtype, device=device).eval()
    with reading(folder / "text_encoder"):
        text = TextEncoder(folder, device, dtype, min(MAX_TOKENS, transformer.config.max_text_tokens))
    with reading(folder / "vae"):
        vae = Autoencoder(folder, device)
    return Pipeline(choice, transformer, text, vae)


def usual_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """What the network of a model folder computes in if nobody says otherwise; see `load_pipeline`."""
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    return torch.float32 if size < SMALL_BYTES else compute_dtype(device)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return 8-bit RGB pictures of pixels (B, 3, H, W) in [-1, 1]."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels.permute(0, 2, 3, 1).cpu()]

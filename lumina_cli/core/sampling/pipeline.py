"""A whole model: prompts to pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.device import compute_dtype, pick_device
from lumina_cli.core.encoders.text import MAX_TOKENS, TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder, vae_dtype
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.images.sizes import Size, parse_size
from lumina_cli.core.kernels.dispatch import choose_kernel
from lumina_cli.core.models.folder import ModelFolder, PlanLike, component_errors, default_plan
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.sampling.batching import fitting_batch
from lumina_cli.core.sampling.latents import NonFiniteLatents, draw_latents
from lumina_cli.core.sampling.output.metadata import Lora
from lumina_cli.core.sampling.request import Job, ResolvedRequest, SamplingRequest
from lumina_cli.core.sampling.teacache.layer_cache import LayerCache, cache_for, fit_digest, needs_fit
from lumina_cli.core.sampling.text_cache import TextCache

__all__ = ["Job", "Pipeline", "PlanLike", "default_plan", "load_pipeline", "parse_size"]

SMALL_BYTES = 2**30  # weight files below this are fast in float32, where the batch does not show in a picture


class Budget(Protocol):
    """A budget of memory; see `offload.Room`."""

    in_turn: bool
    make: Callable[[tuple[int, int], int, bool], None]


class Pipeline(ModelFolder):
    """A loaded model folder: the components that turn prompts into images.

    transformer     the velocity network, a `NextDiT`
    text            the text encoder
    vae             the autoencoder
    features        cache of the latest text features
    room            memory manager, if a memory budget is set
    cache           layer cache of the latest call, if its plan has one
    base_weights    fingerprint of the model folder; `weights` also covers LoRAs and quantization
    loras           LoRAs merged into the transformer
    quantize        quantization of the transformer
    note            called with each message about how images are generated, once per message
    """

    def __init__(self, choice: ModelChoice, transformer: NextDiT, text: TextEncoder, vae: Autoencoder):
        super().__init__(choice)
        self.transformer, self.text, self.vae = transformer, text, vae
        self.features = TextCache(lambda texts: text.encode(texts))  # looked up late: parts come and go
        self.cache: LayerCache | None = None
        self.room: Budget | None = None
        self.base_weights = self.weights
        self.loras: tuple[Lora, ...] = ()
        self.quantize: str | None = None
        self.note: Callable[[str], None] = lambda line: None
        self.noted: set[str] = set()
        config = transformer.config
        if text.dim != config.text_dim or vae.channels != config.in_channels:
            raise LuminaError(
                f"{self.folder}: the parts do not fit: text features {text.dim} for a network that reads "
                f"{config.text_dim}, latent channels {vae.channels} for one that reads {config.in_channels}"
            )

    def changed(self, loras: Sequence[Lora] = (), quantize: str | None = None) -> None:
        """Tell in `weights` that LoRAs were merged into them, or that they are in 8 bits now."""
        self.loras, self.quantize = tuple(loras), quantize
        added = [f"{digest}:{scale:g}" for _, scale, digest in self.loras]
        self.weights = "+".join([self.base_weights, *added, *([quantize] if quantize else [])])

    def weights_for(self, plan: Plan) -> str:
        """Return `weights` and, where the cache of a plan goes by a fit, a digest of it: it decides, too."""
        fit = fit_digest(plan, self.folder)
        return f"{self.weights}+fit:{fit}" if fit else self.weights

    @property
    def in_turn(self) -> bool:
        """Whether only one part is in memory at a time: see `read_ahead`."""
        return self.room is not None and self.room.in_turn

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
        """Generate `count` images for every prompt.

            prompt     one prompt or a list of prompts; an empty one generates from the system prompt
            seed       any integer; an image depends on the seed, its number and its size, not on the batch
            count      images per prompt
            size       (width, height), "WIDTHxHEIGHT", "16:9" or one number for a square; None: model default
            system     system prompt, by name or as text
            negative   negative prompt
            preset     official, diffusers, comfyui, fast or a YAML file; None: the model's own plan
            settings   fields of `Plan` to change, such as steps=8 or solver="euler"; calls=N sets a budget
            returns    PIL images: all images of the first prompt, then of the second...

        Raises:
            UsageError: if a setting or the size is invalid.
            LuminaError: if the latents contain NaN or infinity; the message names the call.
        """
        wish = SamplingRequest(seed, count, size, settings, preset, system, negative)
        setup, sides = wish.resolve(self), self.size_for(size)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        jobs = [Job(text, seed, number, negative) for text in prompts for number in range(count)]
        batch = fitting_batch(sides, self.longest_text, self.token_side)
        groups = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
        return [picture for group in groups for picture in self.draw_setup(group, setup, sides)]

    def read_ahead(self, jobs: Sequence[Job], setup: ResolvedRequest) -> None:
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
        return self.draw_setup(jobs, ResolvedRequest(plan or self.plan, system), size, on_step)

    def draw_setup(
        self,
        jobs: Sequence[Job],
        setup: ResolvedRequest,
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch as `setup` says; LuminaError where its latents stop being numbers.

        UsageError where a budget of memory is too small for it.
        """
        width, height = size or self.default_size
        if self.room is not None:
            self.room.make((width, height), len(jobs), setup.plan.cache is not None)
        shape = (self.vae.channels, height // self.factor, width // self.factor)
        noise = torch.stack([draw_noise(job.seed, job.number, shape) for job in jobs])
        text, mask = self.features.of([setup.prompt(job) for job in jobs])
        negatives = [setup.negative(job) for job in jobs]
        null = self.features.of(negatives if len(set(negatives)) > 1 else negatives[:1])

        self.cache = self._cache(setup.plan)
        try:
            latents = draw_latents(
                self.transformer, noise.to(text.device), text, mask, *null, setup.plan, on_step, self.cache
            )  # fmt: skip
        except NonFiniteLatents as error:
            raise LuminaError(find_overflow(error, setup.plan, jobs[error.row])) from error
        if self.cache is not None:
            self.cache.drop()  # decoding takes the most memory
        return to_images(self.vae.decode(latents))

    def _cache(self, plan: Plan) -> LayerCache | None:
        """The cache of a plan; its fit was made for the weights as they are in the folder."""
        if needs_fit(plan) and self.weights != self.base_weights:
            what = " and ".join([*(["LoRAs"] if self.loras else []), *filter(None, [self.quantize])])
            line = f"cache {plan.cache} was fitted to the model without {what}: its error may be larger"
            if line not in self.noted:
                self.noted.add(line)
                self.note(line)
        return cache_for(plan, self.folder, self.base_weights)


def find_overflow(error: NonFiniteLatents, plan: Plan, job: Job) -> str:
    """Say, in one line, at which call of a plan a picture stopped being numbers."""
    calls = plan.calls()
    step = calls[error.call - 1].step + 1
    return (
        f"NaN or infinity in the latents of {job.prompt[:40]!r}, seed {job.seed}, at call {error.call} of "
        f"{len(calls)} (step {step}, t {error.t:.4f}); the weights are damaged, or the guidance is too strong"
    )


def load_pipeline(
    name: str | Path | ModelChoice = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """Load a model by name, folder or hub id; LuminaError names the part that is missing or damaged.

    Without `dtype` a network with weight files below 1 GiB, such as nano, computes in float32, a larger one
    in bfloat16 where the device has it, and so does the autoencoder. In float32 a picture is the same
    whatever is drawn beside it, to one level of 255. In bfloat16 it starts from the same noise, but what is
    drawn beside it changes how sums are rounded, and so details; a batch of one depends on its prompt alone.
    """
    choice = name if isinstance(name, ModelChoice) else choose_model(name)
    folder, device = choice.folder, pick_device(device)
    dtype = dtype or usual_dtype(folder, device)
    with component_errors(folder / "transformer"):
        transformer = load_transformer(folder / "transformer", dtype=dtype, device=device).eval()
    with component_errors(folder / "text_encoder"):
        text = TextEncoder(folder, device, dtype, min(MAX_TOKENS, transformer.config.max_text_tokens))
    with component_errors(folder / "vae"):
        vae = Autoencoder(folder, device, vae_dtype(dtype))
    return Pipeline(choice, transformer, text, vae)


def usual_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """What the network of a model folder computes in if nobody says otherwise; see `load_pipeline`."""
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    return torch.float32 if size < SMALL_BYTES else compute_dtype(device)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Return 8-bit RGB pictures of pixels (B, 3, H, W) in [-1, 1]."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels.permute(0, 2, 3, 1).cpu()]

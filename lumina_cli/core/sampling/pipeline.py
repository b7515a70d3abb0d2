"""The text-to-image pipeline: prompts to PIL images."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.text import MAX_TOKENS, TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder, vae_dtype
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.images.sizes import Size, parse_size
from lumina_cli.core.kernels.dispatch import choose_kernel
from lumina_cli.core.models.folder import ModelFolder, PlanLike, component_errors, default_plan
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.sampling.batching import default_batch_size
from lumina_cli.core.sampling.hooks import Batch, BatchHook, StepCallback
from lumina_cli.core.sampling.inputs.python_values import default_dtype, parse_dtype, read_call
from lumina_cli.core.sampling.latents import NonFiniteLatents, draw_latents
from lumina_cli.core.sampling.output.generated import GeneratedImage, attach_record, to_images
from lumina_cli.core.sampling.output.metadata import GenerationRecord, Lora
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.teacache.kinds import fit_digest, needs_fit, recognize_weights
from lumina_cli.core.sampling.teacache.layer_cache import LayerCache, cache_for
from lumina_cli.core.sampling.text_cache import TextCache

__all__ = ["Job", "Pipeline", "PlanLike", "default_plan", "load_pipeline", "parse_size"]


class MemoryLimit(Protocol):
    """Keeps the components within a memory budget; see `offload.MemoryManager`."""

    offloads: bool
    prepare: Callable[[tuple[int, int], int, bool], None]


class Pipeline(ModelFolder):
    """A loaded model folder: the components that turn prompts into images.

    transformer      the velocity network, a `NextDiT`
    text             the text encoder
    vae              the autoencoder
    text_cache       cache of the latest text features
    memory_manager   keeps the components within a memory budget; None without one
    cache            layer cache of the latest batch, if its plan has one
    hooks            change each batch; the last one added is the outermost
    base_weights     fingerprint of the model folder; `weights` also covers LoRAs and quantization
    loras            LoRAs merged into the transformer
    quantize         quantization of the transformer
    note             called with each message about how images are generated, once per message
    """

    def __init__(self, choice: ModelChoice, transformer: NextDiT, text: TextEncoder, vae: Autoencoder):
        super().__init__(choice)
        self.transformer, self.text, self.vae = transformer, text, vae
        # not the bound method `text.encode`: it would keep an offloaded text encoder in memory
        self.text_cache = TextCache(lambda texts: text.encode(texts))
        self.cache: LayerCache | None = None
        self.memory_manager: MemoryLimit | None = None
        self.hooks: tuple[BatchHook, ...] = ()
        self.base_weights = self.weights
        self.loras: tuple[Lora, ...] = ()
        self.quantize: str | None = None
        self.note: Callable[[str], None] = lambda line: None
        self.noted: set[str] = set()
        config = transformer.config
        if text.dim != config.text_dim or vae.channels != config.in_channels:
            raise LuminaError(
                f"{self.folder}: the components do not match: the transformer expects {config.text_dim} "
                f"text features and {config.in_channels} latent channels, not {text.dim} and {vae.channels}"
            )

    def with_hooks(self, *hooks: BatchHook) -> "Pipeline":
        """Return a pipeline with the same components that also runs `hooks` on each batch."""
        other = copy(self)
        other.hooks = (*self.hooks, *hooks)
        return other

    def record_changes(self, loras: Sequence[Lora] = (), quantize: str | None = None) -> None:
        """Add merged LoRAs and quantization to the fingerprint `weights`."""
        self.loras, self.quantize = tuple(loras), quantize
        added = [f"{digest}:{scale:g}" for _, scale, digest in self.loras]
        self.weights = "+".join([self.base_weights, *added, *([quantize] if quantize else [])])

    def weights_for(self, plan: Plan) -> str:
        """Return `weights`, with a digest of the cache fit if the plan's cache uses one.

        The fit decides which layers are skipped, so it changes the image as the weights do.
        """
        fit = fit_digest(plan, self.folder)
        return f"{self.weights}+fit:{fit}" if fit else self.weights

    def recognize(self, weights: str, plan: Plan) -> str:
        """See `recognize_weights`."""
        return recognize_weights(weights, plan, self.folder, self.identity)

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) of images whose request has no size: that of the model or of a hook."""
        size = super().default_size
        for hook in self.hooks:
            size = hook.default_size(size, self.token_side)
        return size

    @property
    def edit_settings(self) -> dict | None:
        """What the metadata of the images contains as "edit"."""
        return next((hook.edit_settings for hook in self.hooks if hook.edit_settings is not None), None)

    @property
    def offloads(self) -> bool:
        """Whether only one component is in memory at a time; see `encode_ahead`."""
        return self.memory_manager is not None and self.memory_manager.offloads

    @property
    def kernel(self) -> str:
        """Name of the attention implementation that the transformer calls; see `choose_kernel`."""
        network = self.transformer
        if network.kernel != "auto":
            return network.kernel
        return choose_kernel("auto", network.x_embedder.weight.device, network.dtype)

    def __call__(
        self,
        prompt: str | Sequence[str],
        seed: int | Sequence[int] | None = None,
        count: int | None = None,
        size: Size = None,
        system: str | None = None,
        negative: str | Sequence[str | None] | None = None,
        preset: str | Path | None = None,
        negative_system: bool | None = None,
        init: str | Path | Image.Image | None = None,
        strength: float | None = None,
        mask: str | Path | Image.Image | None = None,
        **settings: Any,
    ) -> list[GeneratedImage]:
        """Generate `count` images for every prompt. None stands for a default.

            prompt     one prompt or a list of prompts; an empty one generates from the system prompt
            seed       any integer (0); an image depends on its seed, number and size, not on the batch; a
                       list gives images of each seed
            count      images per prompt (1)
            size       (width, height), "WIDTHxHEIGHT", "16:9" or one number for a square; None: model default
            system     system prompt, by name or as text; None: the model's own
            negative   negative prompt, or a list with one for each prompt
            preset     official, diffusers, comfyui, fast or a YAML file; None: the model's own plan
            negative_system   whether the negative prompt gets the system prompt; None: as in the preset
            init, strength, mask   image to start from and inpainting mask, files or images; see `read_edit`
            settings   fields of `Plan` to change, such as steps=8 or solver="euler"; calls=N sets a budget
            returns    PIL images: all images of the first prompt, then of the second...; `save` stores the
                       generation settings, so that `lumina sample --from` can repeat them

        Raises:
            UsageError: if an argument is invalid; before any work.
            LuminaError: if a file cannot be read, or the latents contain NaN or infinity.
        """
        call = read_call(prompt, seed, count, size, system, negative, preset, negative_system, settings)
        pipeline = self.with_edit(init, mask, strength)
        resolved, pixels = call.request.resolve(self), pipeline.size_for(call.request.size)
        limit = default_batch_size(pixels, self.longest_text, self.token_side)
        batches = [call.jobs[start : start + limit] for start in range(0, len(call.jobs), limit)]
        images = [image for batch in batches for image in pipeline.generate_batch(batch, resolved, pixels)]
        records = (GenerationRecord.of(pipeline, resolved, job, pixels) for job in call.jobs)
        return list(map(attach_record, images, records))

    def with_edit(self, init: Any, mask: Any = None, strength: float | None = None) -> "Pipeline":
        """Return a pipeline that starts from the image `init`; this one if it is None."""
        from lumina_cli.core.sampling.editing.img2img import EditHook, read_edit

        if init is None:
            if mask is not None or strength is not None:
                raise UsageError("mask and strength need init, the image to start from")
            return self
        return self.with_hooks(EditHook(read_edit(init, mask, strength), self.note))

    def encode_ahead(self, jobs: Sequence[Job], resolved: ResolvedRequest) -> None:
        """Encode the texts of several batches at once if components are offloaded.

        Otherwise the text encoder would be loaded again for each batch.
        """
        if self.offloads:
            texts = [text for job in jobs for text in (resolved.prompt(job), resolved.negative(job))]
            for text in dict.fromkeys(texts):
                self.text_cache.encode([text])

    def generate(
        self,
        jobs: Sequence[Job],
        plan: Plan | None = None,
        size: tuple[int, int] | None = None,
        system: str | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """Generate one batch, an image for each job, under `plan`; see `generate_batch`."""
        resolved = ResolvedRequest(plan or self.plan, system or self.default_system)
        return self.generate_batch(jobs, resolved, size, on_step)

    def generate_batch(
        self,
        jobs: Sequence[Job],
        resolved: ResolvedRequest,
        size: tuple[int, int] | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """Generate one batch, an image for each job.

            size      (width, height) in pixels; None: `default_size`
            on_step   see `draw_latents`

        Raises:
            UsageError: if the memory budget is too small for the batch, or a hook rejects it.
            LuminaError: if the latents contain NaN or infinity.
        """
        batch = Batch(jobs, resolved, size or self.default_size, self.transformer, on_step)
        prepared: list[tuple[BatchHook, Batch]] = []
        for hook in reversed(self.hooks):
            batch = hook.prepare(self, batch)
            prepared.append((hook, batch))
        if self.memory_manager is not None:
            self.memory_manager.prepare(batch.size, len(jobs), batch.resolved.plan.cache is not None)
        latents = self._latents(batch)  # first: looking up `vae.decode` loads an offloaded autoencoder
        images = to_images(self.vae.decode(latents))
        for hook, own in reversed(prepared):
            images = hook.finish(self, own, images)
        return images

    def _latents(self, batch: Batch) -> Tensor:
        """Latents (B, C, H, W) of a batch."""
        jobs, resolved, plan = batch.jobs, batch.resolved, batch.resolved.plan
        width, height = batch.size
        shape = (self.vae.channels, height // self.factor, width // self.factor)
        noise = torch.stack([draw_noise(job.seed, job.number, shape) for job in jobs])
        text, mask = self.text_cache.encode([resolved.prompt(job) for job in jobs])
        negatives = [resolved.negative(job) for job in jobs]
        null = self.text_cache.encode(negatives if len(set(negatives)) > 1 else negatives[:1])

        self.cache = self._layer_cache(plan)
        try:
            latents = draw_latents(
                batch.network, noise.to(text.device), text, mask, *null, plan, batch.on_step, self.cache
            )  # fmt: skip
        except NonFiniteLatents as error:
            job = jobs[error.entry]
            raise LuminaError(error.describe(job.prompt, job.seed, plan)) from error
        if self.cache is not None:
            self.cache.release()  # decoding is where memory peaks
        return latents

    def _layer_cache(self, plan: Plan) -> LayerCache | None:
        """The cache of a plan, with a note if its fit was made for weights that were changed since."""
        if needs_fit(plan) and self.weights != self.base_weights:
            what = " and ".join([*(["LoRAs"] if self.loras else []), *filter(None, [self.quantize])])
            line = f"cache {plan.cache} was fitted to the model without {what}: its error may be larger"
            if line not in self.noted:
                self.noted.add(line)
                self.note(line)
        return cache_for(plan, self.folder, self.base_weights, self.identity.earlier)


def load_pipeline(
    name: str | Path | ModelChoice = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    frozen: str | Path | None = None,
) -> Pipeline:
    """Load a model by name, folder or hub id.

        device    None: the first GPU, or the CPU
        dtype     of the transformer; None: float32 if its weight files are smaller than 1 GiB, as nano's are,
                  otherwise bfloat16 if the device supports it; the autoencoder follows
        frozen    see `find_model`

    In float32 an image is the same in any batch, within one level of 255. In bfloat16 the size of the batch
    changes the order of sums, and so details of the image; with a batch of one it depends on its own request
    alone.

    Raises:
        UsageError: if the model is unknown.
        LuminaError: if a component is missing or damaged; the message names it.
    """
    dtype, device = parse_dtype(dtype), pick_device(device)
    choice = name if isinstance(name, ModelChoice) else choose_model(name, frozen)
    folder = choice.folder
    dtype = dtype or default_dtype(folder, device)
    with component_errors(folder / "transformer"):
        transformer = load_transformer(folder / "transformer", dtype=dtype, device=device).eval()
    with component_errors(folder / "text_encoder"):
        text = TextEncoder(folder, device, dtype, min(MAX_TOKENS, transformer.config.max_text_tokens))
    with component_errors(folder / "vae"):
        vae = Autoencoder(folder, device, vae_dtype(dtype))
    return Pipeline(choice, transformer, text, vae)

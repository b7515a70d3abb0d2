"""A network in training: its weights, their moving average, its optimizer, and one training step.

B batch, M text tokens, C channels, H W latent size, T text width.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lumina_cli.core.device import find_compiler
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.errors import LuminaError, MissingDependency
from lumina_cli.core.flow.path import shift_time, train_shift
from lumina_cli.core.models.components import find_transformer
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.nextdit.convert import check_state_dict, load_transformer
from lumina_cli.core.training.batches import TrainingBatch
from lumina_cli.core.training.config import Recipe, Stage
from lumina_cli.core.training.objective import draw_time_and_noise, even_times, stage_loss, velocity_loss
from lumina_cli.core.training.optim import Optimizer, ema_decay, update_ema

TOKEN_SIDE = 16  # pixels along one side of an image token
CHECK = 2  # random stream of the validation noise
MAX_BAD_STEPS = 10
MAX_VARIANTS = 64  # compiled variants of one block


class Trainer:
    """The state of a training run.

    step       optimizer steps so far, over all stages
    bad_steps  consecutive steps so far whose gradient was not finite
    """

    def __init__(self, recipe: Recipe, encoder: TextEncoder, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe, self.encoder, self.device = recipe, encoder, device
        self.model = build_model(recipe.model).to(device).train()
        if self.model.config.text_dim != encoder.dim:
            width = self.model.config.text_dim
            raise LuminaError(
                f"model {recipe.model} requires text features of width {width}; "
                f"the frozen encoder has width {encoder.dim}"
            )
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.checkpointing = recipe.checkpointing
        self.optimizer = Optimizer(self.model, recipe.optimizer)
        self.step, self.bad_steps = 0, 0
        if recipe.compile:
            compile_blocks(self.model)

    def update(self, batch: TrainingBatch, stage: Stage, lr: float) -> dict[str, float | Tensor]:
        """Train on one batch at learning rate `lr`; return its metrics.

        "loss" and "auxiliary_loss" (only if the stage has one) are scalars on the device: reading them makes
        the host wait for the device, so that is left to the caller. "grad_norm" is a float, because the
        check for a finite gradient needs it on the host before the weights change.

        Raises:
            LuminaError: if the gradient was not finite in ten consecutive steps.
        """
        latents, text, mask = self._inputs(batch)
        draw = partial(self._draw, self.recipe.seed, self.step)
        with self._autocast():
            encoded = self.model.encode_text(text, mask)
            velocity = partial(_velocity, self.model, encoded)
            loss, auxiliary = stage_loss(velocity, latents, draw, stage_shift(stage), stage.auxiliary_loss)
            total = loss if auxiliary is None else loss + stage.auxiliary_loss * auxiliary
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip, foreach=True).item()
        self._apply(norm, lr)
        self.step += 1
        metrics = {"loss": loss.detach(), "grad_norm": norm}
        return metrics if auxiliary is None else metrics | {"auxiliary_loss": auxiliary.detach()}

    def _apply(self, norm: float, lr: float) -> None:
        """Step unless the gradient norm is not finite.

        One bad batch must not end a run; ten in a row mean that training diverged.
        """
        if math.isfinite(norm):
            self.optimizer.step(lr)
            update_ema(self.ema.parameters(), self.model.parameters(), ema_decay(self.step, self.recipe.ema))
            self.bad_steps = 0
            return
        self.optimizer.zero_grad()
        self.bad_steps += 1
        if self.bad_steps == MAX_BAD_STEPS:
            first = self.step - MAX_BAD_STEPS + 1
            raise LuminaError(f"the gradient has not been finite since step {first}; try a lower lr")

    @torch.no_grad()
    def validate(self, batches: Sequence[TrainingBatch], stage: Stage) -> float:
        """Return the mean loss of the averaged weights on fixed images, captions, times and noise."""
        count = sum(len(batch.ids) for batch in batches)
        times = shift_time(even_times(count), stage_shift(stage)).to(self.device)
        losses: list[Tensor] = []
        for batch in batches:
            latents, text, mask = self._inputs(batch)
            first = sum(map(len, losses))
            samples = range(first, first + len(text))
            _, noise = self._draw(0, 0, [tuple(x.shape) for x in latents], CHECK, samples)
            noise = torch.stack(noise) if isinstance(latents, Tensor) else noise
            with self._autocast():
                velocity = partial(_velocity, self.ema, self.ema.encode_text(text, mask))
                losses.append(velocity_loss(velocity, latents, noise, times[first : first + len(text)]))
        return torch.cat(losses).mean().item()

    def _draw(self, seed: int, step: int, shapes: list, stream: int, samples: Sequence[int] | None = None):
        times, noise = draw_time_and_noise(seed, step, samples or range(len(shapes)), shapes, stream)
        return times.to(self.device), [x.to(self.device) for x in noise]

    def _inputs(self, batch: TrainingBatch) -> tuple[Tensor | list[Tensor], Tensor, Tensor | None]:
        """Return latents, text features (B, M, T) and mask of a batch, on the device."""
        latents = batch.latents
        latents = (
            latents.to(self.device) if isinstance(latents, Tensor) else [x.to(self.device) for x in latents]
        )
        mask = batch.mask if batch.mask is None else batch.mask.to(self.device)
        if batch.text is not None:
            return latents, batch.text.to(self.device), mask
        ids = batch.ids.to(self.device)
        with torch.no_grad(), self._autocast():
            attend = torch.ones_like(ids) if mask is None else mask.long()
            text = self.encoder.model(input_ids=ids, attention_mask=attend, use_cache=False).last_hidden_state
        return latents, text.float(), mask

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def load(self, weights: dict, ema: dict, optimizer: dict, step: int, name: str) -> None:
        """Restore the state of a checkpoint; `name` names it in error messages.

        Raises:
            LuminaError: if the checkpoint was written for another model or another optimizer.
        """
        for model, tensors in ((self.model, weights), (self.ema, ema)):
            check_state_dict(model, tensors, name)
            model.load_state_dict(tensors)
        try:
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, ValueError) as error:
            raise LuminaError(
                f"{name} was written by a different optimizer; the recipe uses {self.recipe.optimizer.name}"
            ) from error
        self.step = step


def _velocity(model: NextDiT, text, x, t: Tensor):
    return model(x, t, text)


def build_model(name: str) -> NextDiT:
    """Return a transformer in float32: a named size with random weights, or the weights in a folder.

    Raises:
        LuminaError: if `name` is neither a named size nor the folder of a transformer.
    """
    if name in NAMED:
        return NextDiT(NextDiTConfig.named(name))
    return load_transformer(find_transformer(name), torch.float32).requires_grad_()


def compile_blocks(model: NextDiT) -> None:
    """Compile each block separately: nearly all of the speedup in a fraction of the compile time.

    The sequence length becomes a variable when it first changes, so a few variants of a block serve all
    caption lengths and image sizes: with and without modulation, mask, and the one-token empty caption.

    Raises:
        MissingDependency: if the C++ compiler that torch.compile needs on a CPU is missing.
    """
    if not torch.cuda.is_available() and not find_compiler():
        raise MissingDependency(
            "compile=true needs a C++ compiler (g++ or clang++); install one, or set compile=false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
        block.compile()


def stage_shift(stage: Stage) -> float:
    """Return the time shift of a stage: its own, or the default for its number of image tokens."""
    return stage.shift or train_shift((stage.size // TOKEN_SIDE) ** 2)

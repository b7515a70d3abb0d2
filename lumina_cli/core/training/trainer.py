"""One network in training: its weights, their average, its optimiser, and what a step does to them.

B pictures, M text tokens, T text width.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lumina_cli.core.device import find_compiler
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.errors import LuminaError, MissingDependency
from lumina_cli.core.flow.path import shift_time, train_shift
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.nextdit.convert import check_state_dict, load_transformer
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.training.config import Recipe, Stage
from lumina_cli.core.training.ema import ema_decay, update_ema
from lumina_cli.core.training.objective import draw_time_and_noise, even_times, stage_loss, velocity_loss
from lumina_cli.core.training.optim import Optimizer

PIXELS_A_TOKEN = 16  # along a side
CHECK = 2  # random stream of the validation noise
MAX_BAD_STEPS = 10
MAX_VARIANTS = 64  # of a compiled block


class Trainer:
    """The state of a training run at `step`, counted over all stages."""

    def __init__(self, recipe: Recipe, encoder: TextEncoder, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe, self.encoder, self.device = recipe, encoder, device
        self.model = build_model(recipe.model).to(device).train()
        if self.model.config.text_dim != encoder.dim:
            wide = self.model.config.text_dim
            raise LuminaError(
                f"model {recipe.model} reads text of width {wide}; the frozen encoder gives {encoder.dim}"
            )
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.checkpointing = recipe.checkpointing
        self.optimizer = Optimizer(self.model, recipe.optimizer)
        self.step, self.bad_steps = 0, 0
        if recipe.compile:
            compile_blocks(self.model)

    def update(self, batch, stage: Stage, lr: float) -> dict[str, float]:
        """Train on one batch; return loss, auxiliary_loss and grad_norm.

        Raises LuminaError when the gradient was not finite ten times in a row.
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
        figures = {"loss": loss.item(), "grad_norm": norm}
        return figures if auxiliary is None else figures | {"auxiliary_loss": auxiliary.item()}

    def _apply(self, norm: float, lr: float) -> None:
        """Step unless the gradient is broken: one bad batch must not end a run, a row of them must."""
        if math.isfinite(norm):
            self.optimizer.step(lr)
            update_ema(self.ema.parameters(), self.model.parameters(), ema_decay(self.step, self.recipe.ema))
            self.bad_steps = 0
            return
        self.optimizer.zero_grad()
        self.bad_steps += 1
        if self.bad_steps == MAX_BAD_STEPS:
            raise LuminaError(
                f"the gradient is not finite since step {self.step - MAX_BAD_STEPS + 1}; try a lower lr"
            )

    @torch.no_grad()
    def validate(self, batches: Sequence, stage: Stage) -> float:
        """Return the mean loss of the averaged weights on fixed pictures, captions, times and noise."""
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

    def _inputs(self, batch) -> tuple[Tensor | list[Tensor], Tensor, Tensor | None]:
        """Latents, text features (B, M, T) and mask of a batch, on the device."""
        latents = batch.latents
        latents = (
            latents.to(self.device) if isinstance(latents, Tensor) else [x.to(self.device) for x in latents]
        )
        ids = batch.ids.to(self.device)
        mask = batch.mask if batch.mask is None else batch.mask.to(self.device)
        if (known := getattr(batch, "text", None)) is not None:
            return latents, known.to(self.device), mask
        with torch.no_grad(), self._autocast():
            attend = torch.ones_like(ids) if mask is None else mask.long()
            text = self.encoder.model(input_ids=ids, attention_mask=attend, use_cache=False).last_hidden_state
        return latents, text.float(), mask

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def load(self, weights: dict, ema: dict, optimizer: dict, step: int, name: str) -> None:
        """Take over what a checkpoint holds; LuminaError if it is another model's or another optimiser's."""
        for model, tensors in ((self.model, weights), (self.ema, ema)):
            check_state_dict(model, tensors, name)
            model.load_state_dict(tensors)
        try:
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, ValueError) as error:
            raise LuminaError(
                f"{name} was trained with another optimiser than {self.recipe.optimizer.name}"
            ) from error
        self.step = step


def _velocity(model: NextDiT, text, x, t: Tensor):
    return model(x, t, text)


def build_model(name: str) -> NextDiT:
    """Return a model of a named size with random weights, or the one that a folder holds, in float32."""
    if name in NAMED:
        return NextDiT(NextDiTConfig.named(name))
    return load_transformer(find_transformer(name), torch.float32).requires_grad_()


def find_transformer(name: str) -> Path:
    """Return the folder of a transformer's weights: of a run, of a model, or itself."""
    folders = [Path(name) / "model" / "transformer", Path(name) / "transformer", Path(name)]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder is None:
        hint = did_you_mean(name, NAMED) or f"; it is no model folder and none of {', '.join(NAMED)}"
        raise LuminaError(f"model {name!r} is unknown{hint}")
    return folder


def compile_blocks(model: NextDiT) -> None:
    """Compile each block on its own: nearly all of the gain in a fraction of the time.

    The length of a sequence becomes a variable when it first changes, so a handful of variants serve every
    caption length and picture size: with and without modulation, mask, and the one-token empty caption.
    Raises MissingPart where there is no C++ compiler, which torch's compiler calls on a CPU.
    """
    if not torch.cuda.is_available() and not find_compiler():
        raise MissingDependency(
            "compile=true needs a C++ compiler (g++ or clang++); install one, or give compile=false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
        block.compile()


def stage_shift(stage: Stage) -> float:
    """Return the time shift of a stage: its own, or the one for its number of image tokens."""
    return stage.shift or train_shift((stage.size // PIXELS_A_TOKEN) ** 2)

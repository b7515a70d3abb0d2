"""Trains the nano captioner on renders of its own: pictures to captions, and captions to other captions.

First the picture's half alone learns to say what lies in each of its 64 tokens, which is quick; then both
halves learn to write. A row of a batch holds one picture and several captions of it, each of which sees the
picture and itself, so that a picture is read once for all of them.

B pictures, N image tokens, C width.
"""

import copy
import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.utils import logging

from lumina_cli.core.nano.captioner import GRID, VISION, add_questions, build_captioner, build_processor
from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, LIGHTS, TINTS, Scene, draw_scene
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.training.config import Count, OptimizerSettings, Rate, Seed, enough_scenes
from lumina_cli.core.training.ema import ema_decay, update_ema
from lumina_cli.core.training.nano.caption_batches import PAIRS, PromptSet, Writer, mirrored
from lumina_cli.core.training.nano.detector import disturb, targets
from lumina_cli.core.training.optim import Optimizer
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

SEED = 700_001  # scenes that no other part is trained on
# The matrices that Muon trains: attention and feed-forward of both halves.
INNER = (".self_attn.", ".mlp.", "queries_keys_values.", "projection.", "linear_up.", "linear_down.")


class Settings(BaseModel):
    """What `lumina train nano-captioner` can set."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str = "captioner"
    """The part that the recipe trains."""
    scenes: Count = 24_000
    """Number of rendered scenes to train on."""
    seed: Seed = 0
    """Random seed of the weights and the batches."""
    tokenizer: Path | None = None
    """Tokenizer folder; null: that of the embedded model."""
    vision_layers: Count = 4
    """Layers of the vision encoder."""
    text_layers: Count = 4
    """Layers of the language model."""
    looking: Annotated[int, Field(ge=0)] = 1_600
    """First steps, in which only the vision encoder trains."""
    steps: Count = 3_600
    """Optimizer steps in total, those of `looking` included."""
    batch: Count = 32
    """Images per step."""
    captions: Annotated[int, Field(ge=1, le=len(PAIRS))] = 4
    """Captions per image."""
    rewrite_every: Annotated[int, Field(ge=2)] = 3
    """Every N-th step trains on rewriting captions, without images."""
    lr: Rate = 2e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    workers: Count = 2
    """Threads; each computes the gradients of a sub-batch."""
    save_every: Count = 100
    """Steps between checkpoints."""

    _enough = model_validator(mode="after")(enough_scenes)

    @model_validator(mode="after")
    def _shared(self) -> "Settings":
        if self.workers > self.batch:
            raise ValueError(f"a batch of {self.batch} cannot be shared by {self.workers} workers")
        return self


SCHEMA = Settings


class DenseHead(nn.Module):
    """Says what lies in each image token (B, N, C): heat per kind, tint, box; where it is; backdrop, light.

    A token must know its place: a LeViT sees distances, not sides, and left and right would look the same.
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(VISION)
        self.there = nn.Linear(VISION, len(KINDS) + len(TINTS) + 4)
        self.around = nn.Linear(VISION, len(BACKDROPS) + len(LIGHTS))
        self.where = nn.Linear(VISION, 2 * GRID)
        nn.init.constant_(self.there.bias[: len(KINDS)], -4.0)

    def loss(self, features: Tensor, scenes: Sequence[Scene], boxes: np.ndarray) -> Tensor:
        heat, cells, tints, offsets = targets(scenes, boxes / 2, GRID)  # its stride is half of ours
        features = self.norm(features)
        maps = self.there(features).float().transpose(1, 2).unflatten(2, (GRID, GRID))
        logits, tint, box = maps.split([len(KINDS), len(TINTS), 4], dim=1)
        p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
        focal = torch.where(heat == 1, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        i, row, column = cells.T
        columns, rows = self.where(features).float().split(GRID, dim=2)
        places = torch.arange(GRID * GRID).repeat(len(features))
        ground, light = self.around(features.mean(1)).float().split([len(BACKDROPS), len(LIGHTS)], dim=1)
        return (
            -focal.sum() / len(cells)
            + cross_entropy(tint[i, :, row, column], tints)
            + 0.3 * (box[i, :, row, column] - offsets).abs().mean()
            + cross_entropy(columns.flatten(0, 1), places % GRID)
            + cross_entropy(rows.flatten(0, 1), places // GRID)
            + 0.3 * cross_entropy(ground, torch.tensor([BACKDROPS.index(s.backdrop) for s in scenes]))
            + 0.3 * cross_entropy(light, torch.tensor([LIGHTS.index(s.light) for s in scenes]))
        )


def words_loss(
    model: nn.Module, batch: dict[str, Tensor], features: Sequence[Tensor] | None = None
) -> Tensor:
    """Return the mean loss of the spoken tokens, given what the projector made of each picture, if any."""
    tokens, spoken = batch["tokens"], batch["spoken"]
    embedded = model.get_input_embeddings()(tokens)
    if features is not None:
        pictures = torch.stack(list(features)).to(embedded.dtype)
        embedded = torch.cat([embedded[:, :1], pictures, embedded[:, 1 + pictures.shape[1] :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch["mask"],
        position_ids=batch["places"],
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][spoken[:, 1:]])
    return cross_entropy(logits.float(), tokens[:, 1:][spoken[:, 1:]])


def _floats(model: nn.Module) -> list[Tensor]:
    """The weights of a model and the running means of its norms."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def _save(model: nn.Module, tokenizer: Any, out: Path) -> None:
    rounded = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.contiguous_format).eval()
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the command line has its own
    with staged_folder(out / "captioner") as folder:
        rounded.save_pretrained(folder)
        config = copy.deepcopy(rounded.config)
        config.dtype = torch.float32  # to count in; half as exact, and one answer in some would differ
        config.save_pretrained(folder)
        build_processor(tokenizer).save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


def _since(settings: Settings, step: int) -> int:
    """Count steps from the start of their half: what a half begins with must not linger in the average."""
    return step - settings.looking if step >= settings.looking else step


def _rate(settings: Settings, step: int) -> float:
    """A short warm-up at the start of each half; half a cosine over the second."""
    done = _since(settings, step)
    rate = settings.lr * min(1.0, (done + 1) / 60)
    if step < settings.looking:
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * done / (settings.steps - settings.looking)))


def train_captioner(
    settings: Settings, out: Path, resume: bool = False, asking: PromptSet | None = None
) -> Iterator[dict]:
    """Train the captioner, yield rows of metrics, and leave `out/captioner`, which transformers opens."""
    from transformers import AutoTokenizer

    pictures, boxes = render_images(SEED, settings.scenes, out)
    scenes = [draw_scene(SEED, i) for i in range(settings.scenes)]
    tokenizer = AutoTokenizer.from_pretrained(
        settings.tokenizer or ASSETS / "nano" / "tokenizer", trust_remote_code=False
    )
    add_questions(tokenizer, asking.pieces())
    torch.manual_seed(settings.seed)
    model = build_captioner(tokenizer, settings.vision_layers, settings.text_layers)
    model.to(memory_format=torch.channels_last)  # two times quicker on a CPU
    learning = nn.ModuleDict({"model": model, "looker": DenseHead()}).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Optimizer(learning, OptimizerSettings(name="muon", betas=(0.9, 0.98)), INNER)
    parts = nn.ModuleDict({**learning, "average": average})
    progress = TrainingProgress(out / "captioner.pt", parts, optimizer, settings)
    first, start = (progress.load() if resume else 0), time.monotonic()
    if first >= settings.steps:  # a kill or a full disk may have kept the last save from ending
        _save(average, tokenizer, out)
        yield {"step": first}
    batches = Batches(settings, pictures, boxes, scenes, Writer(tokenizer, asking))
    with SplitBatch(learning, settings.workers) as shares:
        for step in range(first, settings.steps):
            row = shares.gradients([share.loss for share in batches.shares(step)])
            nn.utils.clip_grad_norm_(learning.parameters(), 2.0)
            optimizer.step(_rate(settings, step))
            update_ema(_floats(average), _floats(model), ema_decay(_since(settings, step), 0.998))
            if (step + 1) % 25 == 0 or step + 1 == settings.steps:
                yield {"step": step + 1, **row, "seconds": time.monotonic() - start}
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                progress.save(step + 1)
                _save(average, tokenizer, out)


class SplitBatch:
    """Computes gradients on shares of a batch at once, in a thread each.

    Where cores are few or busy this wastes less than several threads in every operation. Each thread has a
    copy of the modules that holds the very same weights, but its own running means; the first one's count.
    """

    def __init__(self, modules: nn.ModuleDict, count: int):
        self.copies = [modules]
        for _ in range(count - 1):
            twin = copy.deepcopy(modules)
            for own, shared in zip(twin.parameters(), modules.parameters(), strict=True):
                own.data = shared.data
            self.copies.append(twin)
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "SplitBatch":
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)
        self.pool.shutdown(cancel_futures=True)

    def gradients(self, losses: Sequence) -> dict[str, float]:
        """Leave the mean gradient of the losses, one for each copy; return their mean metrics."""
        results = list(self.pool.map(self._one, self.copies, losses))
        for parameter, *grads in zip(
            self.copies[0].parameters(), *(grads for grads, _ in results), strict=True
        ):
            parameter.grad = None if grads[0] is None else sum(grads) / len(grads)
        return {name: sum(row[name] for _, row in results) / len(results) for name in results[0][1]}

    @staticmethod
    def _one(modules: nn.ModuleDict, loss) -> tuple[Sequence[Tensor | None], dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            value, row = loss(modules)
        grads = torch.autograd.grad(value, list(modules.parameters()), allow_unused=True)
        return grads, {name: float(part.detach()) for name, part in row.items()}


@dataclass
class SubBatch:
    """A part of a batch: its scenes, and unless captions are only rewritten, their pictures and boxes."""

    settings: Settings
    writer: Writer
    rng: random.Random
    scenes: list[Scene]
    pixels: Tensor | None = None
    boxes: np.ndarray | None = None
    looking: bool = False

    def loss(self, modules: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to go down, and what to tell of it."""
        model = modules["model"]
        if self.pixels is None:
            loss = words_loss(model, self.writer.rewritten(self.scenes, self.rng))
            return loss, {"rewriting": loss}
        pixels = self.pixels.contiguous(memory_format=torch.channels_last)
        seen = model.model.get_image_features(pixels, return_dict=True)
        seeing = modules["looker"].loss(seen.last_hidden_state, self.scenes, self.boxes)
        if self.looking:
            return seeing, {"loss": seeing}
        rows = self.writer.about_pictures(self.scenes, self.settings.captions, self.rng)
        loss = words_loss(model, rows, seen.pooler_output)
        return loss + 0.3 * seeing, {"loss": loss, "seeing": seeing}


@dataclass
class Batches:
    """Draws the batch of a step, the same whenever it is asked for."""

    settings: Settings
    pictures: np.ndarray
    boxes: np.ndarray
    scenes: list[Scene]
    writer: Writer

    def shares(self, step: int) -> list[SubBatch]:
        """Return the shares of a step's batch."""
        settings, looking = self.settings, step < self.settings.looking
        chance = np.random.default_rng((SEED, settings.seed, step))
        chosen = chance.choice(len(self.pictures), settings.batch, replace=False)
        shares = []
        for number, index in enumerate(np.array_split(chosen, settings.workers)):
            rng = random.Random(f"{settings.seed}/{step}/{number}")
            shown = [self.scenes[i] for i in index]
            if not looking and step % settings.rewrite_every == 0:
                shares.append(SubBatch(settings, self.writer, rng, shown))
                continue
            turned = chance.random(len(index)) < 0.5
            pixels = torch.from_numpy(np.array(self.pictures[index])).permute(0, 3, 1, 2).float() / 127.5 - 1
            pixels[turned] = pixels[turned].flip(-1)
            shown = [mirrored(s) if turn else s for s, turn in zip(shown, turned, strict=True)]
            boxes = _turned_boxes(self.boxes[index], shown, turned, pixels.shape[-1])
            if chance.random() < 0.3:
                pixels = disturb(pixels, chance)
            shares.append(SubBatch(settings, self.writer, rng, shown, pixels, boxes, looking))
        return shares


def _turned_boxes(boxes: np.ndarray, shown: list[Scene], turned: np.ndarray, size: int) -> np.ndarray:
    """Mirror the boxes (B, MOST, 4) of turned pictures, in the order of the things of their scenes."""
    boxes = boxes.copy()
    boxes[turned, :, 0::2] = size - boxes[turned, :, 2::-2]
    for i in np.flatnonzero(turned):
        if shown[i].layout in ("pair", "group"):
            count = len(shown[i].things)
            boxes[i, :count] = boxes[i, :count][::-1].copy()
    return boxes

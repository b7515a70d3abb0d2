"""Trains the nano captioner on rendered scenes: images to captions, and captions to other captions.

In the first phase only the vision encoder learns, by dense predictions per image token, which is fast; in
the second phase the whole model learns to write captions. A row of a batch contains one image and several of
its captions. Each caption attends to the image and to itself, so that an image is encoded once for all of
its captions.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from lumina_cli.core.nano.captioner import add_questions, build_captioner, build_processor
from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.training.config import OptimizerSettings
from lumina_cli.core.training.nano.caption_batches import CaptionWriter, PromptSet
from lumina_cli.core.training.nano.caption_losses import DenseHead
from lumina_cli.core.training.nano.captioner_settings import SEED, Settings
from lumina_cli.core.training.nano.fit import fit
from lumina_cli.core.training.nano.sub_batches import Batches, SplitBatch
from lumina_cli.core.training.optim import Optimizer, ema_decay, update_ema
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

# The matrices that Muon trains: attention and feed-forward of the vision encoder and the language model.
INNER = (".self_attn.", ".mlp.", "queries_keys_values.", "projection.", "linear_up.", "linear_down.")
SCHEMA = Settings


def train_captioner(
    settings: Settings, out: Path, resume: bool = False, prompts: PromptSet | None = None
) -> Iterator[dict]:
    """Train the captioner, yield rows of metrics, and write `out/captioner`, which transformers opens.

    `prompts` contains the prompts of `lumina caption` and its check of captions.

    Raises:
        LuminaError: if there is nothing to resume, or the saved state is damaged or of another network.
    """
    from transformers import AutoTokenizer

    images, boxes = render_images(SEED, settings.scenes, out)
    scenes = [draw_scene(SEED, i) for i in range(settings.scenes)]
    tokenizer = AutoTokenizer.from_pretrained(
        settings.tokenizer or ASSETS / "nano" / "tokenizer", trust_remote_code=False
    )
    add_questions(tokenizer, prompts.pieces())
    torch.manual_seed(settings.seed)
    model = build_captioner(tokenizer, settings.vision_layers, settings.text_layers)
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    trained = nn.ModuleDict({"model": model, "looker": DenseHead()}).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Optimizer(trained, OptimizerSettings(name="muon", betas=(0.9, 0.98)), INNER)
    parts = nn.ModuleDict({**trained, "average": average})
    batches = Batches(settings, images, boxes, scenes, CaptionWriter(tokenizer, prompts))
    with SplitBatch(trained, settings.workers) as split:

        def train_step(step: int) -> dict[str, float]:
            row = split.gradients(batches.sub_batches(step))
            nn.utils.clip_grad_norm_(trained.parameters(), 2.0)
            optimizer.step(_rate(settings, step))
            update_ema(_floats(average), _floats(model), ema_decay(_since(settings, step), 0.998))
            return row

        yield from fit(
            TrainingProgress(out / "captioner.pt", parts, optimizer, settings),
            train_step,
            lambda: _save(average, tokenizer, out),
            log_every=25,
            resume=resume,
        )


def _floats(model: nn.Module) -> list[Tensor]:
    """Return the weights of a model and the running statistics of its normalization layers."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def _save(model: nn.Module, tokenizer: Any, out: Path) -> None:
    """Round to bfloat16 and save as a folder that transformers opens."""
    rounded = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.contiguous_format).eval()
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the command line shows one of its own
    with staged_folder(out / "captioner") as folder:
        rounded.save_pretrained(folder)
        config = copy.deepcopy(rounded.config)
        config.dtype = torch.float32  # for inference: bfloat16 would change some captions
        config.save_pretrained(folder)
        build_processor(tokenizer).save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


def _since(settings: Settings, step: int) -> int:
    """Return the steps since the start of the current phase.

    The average restarts with each phase, so that it drops the initial weights of the phase quickly.
    """
    return step - settings.looking if step >= settings.looking else step


def _rate(settings: Settings, step: int) -> float:
    """Return the learning rate: a short warmup at the start of each phase, half a cosine over the second."""
    done = _since(settings, step)
    rate = settings.lr * min(1.0, (done + 1) / 60)
    if step < settings.looking:
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * done / (settings.steps - settings.looking)))

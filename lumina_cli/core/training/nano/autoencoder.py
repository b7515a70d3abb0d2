"""The embedded autoencoder: FLUX's layout (8x, 16 channels, no quant convolutions) at nano widths.

B pictures, H W picture size; pictures are (B, 3, H, W) in [-1, 1], latents (B, 16, H/8, W/8).
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.training.config import Count, Fraction, Rate, Seed, Weight, enough_scenes
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

UNSEEN = 900_001  # the seed of scenes that nothing is trained on


class Settings(BaseModel):
    """What `lumina train nano-autoencoder` can set."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str = "autoencoder"
    """The part that the recipe trains."""
    scenes: Count = 12_000
    """Number of rendered scenes to train on."""
    seed: Seed = 0
    """Random seed of the scenes, the weights and the batches."""
    steps: Count = 4_000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=4)] = 24
    """Crops per step."""
    # most of a picture is backdrop: crops hold more of what is hard, at a quarter of the cost
    crop: Annotated[int, Field(ge=8, le=128, multiple_of=8)] = 64
    """Side of a training crop in pixels."""
    whole_from: Fraction = 0.8
    """Fraction of the run after which batches contain whole images, a quarter as many."""
    small_share: Fraction = 0.15
    """Fraction of the batches rendered at half the size, which the first training stage uses."""
    lr: Rate = 2e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    kl: Weight = 1e-3
    """Weight of the KL term."""
    save_every: Count = 250
    """Steps between checkpoints."""

    _enough = model_validator(mode="after")(enough_scenes)


SCHEMA = Settings


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of 2.6M parameters."""
    widths = (16, 32, 64, 128)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def to_pixels(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture (B,), in dB, after rounding to 8 bits."""
    a, b = (((x.clamp(-1, 1) + 1) * 127.5).round() for x in (a, b))
    return 10 * torch.log10(255**2 / (a - b).square().mean((1, 2, 3)).clamp(min=1e-6))


def _loss(model: AutoencoderKL, pixels: Tensor, settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(
        settings.seed * 2**32 + step
    )  # of the step alone: a resume is exact
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        drawn = model.decode(posterior.sample(random)).sample
    drawn = drawn.float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    edges = l1_loss(drawn.diff(dim=-1), pixels.diff(dim=-1)) + l1_loss(
        drawn.diff(dim=-2), pixels.diff(dim=-2)
    )
    return l1_loss(drawn, pixels) + edges + mse_loss(drawn, pixels) + settings.kl * kl, kl


@torch.no_grad()
def measure(model: AutoencoderKL, pictures: np.ndarray) -> dict[str, float]:
    """Return the mean PSNR of pictures (N, H, W, 3), and the mean and deviation of their latents."""
    scores, latents = [], []
    for start in range(0, len(pictures), 40):
        pixels = to_pixels(pictures[start : start + 40])
        latents.append(model.encode(pixels).latent_dist.mode())
        scores.append(psnr(model.decode(latents[-1]).sample, pixels))
    flat = torch.cat(latents)
    return {
        "psnr": float(torch.cat(scores).mean()),
        "mean": float(flat.mean()),
        "deviation": float(flat.std()),
    }


def _save(model: AutoencoderKL, pictures: np.ndarray, folder: Path) -> dict[str, float]:
    """Round to bfloat16, measure what is left, write shift and scale into the config, and save."""
    small = build_autoencoder().eval()
    small.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    figures = measure(small, pictures)
    small.register_to_config(
        shift_factor=round(figures["mean"], 4), scaling_factor=round(1 / figures["deviation"], 4)
    )
    for parameter in small.parameters():  # diffusers warns of its own `to`
        parameter.data = parameter.data.to(torch.bfloat16)
    with staged_folder(folder) as aside:
        small.save_pretrained(aside)
    return figures


def _batch(pictures: np.ndarray, settings: Settings, step: int) -> Tensor:
    """The pixels of one step, chosen by (seed, step): crops, pictures at half the size, or whole pictures."""
    rng = np.random.default_rng((settings.seed, step))
    whole = step >= settings.whole_from * settings.steps
    small = rng.random() < settings.small_share
    count = settings.batch // 4 if whole and not small else settings.batch
    chosen = pictures[np.sort(rng.choice(len(pictures), count, replace=False))]
    if small:
        return avg_pool2d(to_pixels(chosen), 2)
    if whole:
        return to_pixels(chosen)
    room = chosen.shape[1] - settings.crop
    corners = np.clip(
        rng.normal(room / 2, room / 4, (count, 2)).round().astype(int), 0, room
    )  # things stand near the middle
    return to_pixels(
        np.stack(
            [
                p[y : y + settings.crop, x : x + settings.crop]
                for p, (y, x) in zip(chosen, corners, strict=True)
            ]
        )
    )


def train_autoencoder(settings: Settings, out: Path, resume: bool = False) -> Iterator[dict]:
    """Train on rendered scenes, yield rows of metrics, and leave `out/vae`.

    L1 on values and edges + MSE + a small KL; one cosine run of the rate. With `resume` the run goes on where
    its last save left it.
    """
    pictures, _ = render_images(settings.seed, settings.scenes, out)
    unseen, _ = render_images(UNSEEN, 240, out)
    torch.manual_seed(settings.seed)
    model = build_autoencoder().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    progress = TrainingProgress(out / "autoencoder.pt", model, optimizer, settings)
    first, start = (progress.load() if resume else 0), time.monotonic()
    if first >= settings.steps:  # a kill or a full disk may have kept the last save from ending
        yield {"step": first, **_save(model, unseen, out / "vae")}
    for step in range(first, settings.steps):
        pixels = _batch(pictures, settings, step)
        rate = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = settings.lr * rate
        loss, kl = _loss(model, pixels, settings, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        row = {"step": step + 1, "loss": loss.item(), "kl": kl.item(), "seconds": time.monotonic() - start}
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            progress.save(step + 1)
            yield {**row, **_save(model, unseen, out / "vae")}
        elif (step + 1) % 50 == 0:
            yield row

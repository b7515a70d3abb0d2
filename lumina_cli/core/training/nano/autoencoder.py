"""Trains nano's autoencoder: FLUX's architecture (8x, 16 channels, no quant convolutions), narrower.

B batch, H W image size. Pixels are (B, 3, H, W) in [-1, 1], latents (B, 16, H/8, W/8).
"""

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
from lumina_cli.core.training.nano.fit import cosine_rate, descend, fit
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.run_folder import staged_folder

UNSEEN = 900_001  # seed of scenes that no component is trained on


class Settings(BaseModel):
    """Settings of `lumina train nano-autoencoder`."""

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
    # Most of an image is background: crops contain more of the difficult areas, at a quarter of the cost.
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


def to_pixels(images: np.ndarray) -> Tensor:
    """Convert images (B, H, W, 3) uint8 to pixels (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB of pixels (B, 3, H, W), rounded to uint8."""
    a, b = (((x.clamp(-1, 1) + 1) * 127.5).round() for x in (a, b))
    return 10 * torch.log10(255**2 / (a - b).square().mean((1, 2, 3)).clamp(min=1e-6))


def _loss(model: AutoencoderKL, pixels: Tensor, settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """Return the total loss and the KL divergence of the posterior from a standard normal."""
    # The seed depends on the step only, so that a resumed run draws the same noise.
    random = torch.Generator().manual_seed(settings.seed * 2**32 + step)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(posterior.sample(random)).sample
    decoded = decoded.float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    columns = l1_loss(decoded.diff(dim=-1), pixels.diff(dim=-1))
    rows = l1_loss(decoded.diff(dim=-2), pixels.diff(dim=-2))
    edges = columns + rows  # penalizes blur
    return l1_loss(decoded, pixels) + edges + mse_loss(decoded, pixels) + settings.kl * kl, kl


@torch.no_grad()
def measure(model: AutoencoderKL, images: np.ndarray) -> dict[str, float]:
    """Return the mean PSNR of images (N, H, W, 3) in dB, and the mean and deviation of their latents."""
    scores, latents = [], []
    for start in range(0, len(images), 40):
        pixels = to_pixels(images[start : start + 40])
        latents.append(model.encode(pixels).latent_dist.mode())
        scores.append(psnr(model.decode(latents[-1]).sample, pixels))
    flat = torch.cat(latents)
    return {
        "psnr": float(torch.cat(scores).mean()),
        "mean": float(flat.mean()),
        "deviation": float(flat.std()),
    }


def _save(model: AutoencoderKL, images: np.ndarray, folder: Path) -> dict[str, float]:
    """Round to bfloat16, measure the result, write shift and scale into the config, and save."""
    rounded = build_autoencoder().eval()
    rounded.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    figures = measure(rounded, images)
    rounded.register_to_config(
        shift_factor=round(figures["mean"], 4), scaling_factor=round(1 / figures["deviation"], 4)
    )
    for parameter in rounded.parameters():  # the `to` of diffusers emits a warning
        parameter.data = parameter.data.to(torch.bfloat16)
    with staged_folder(folder) as aside:
        rounded.save_pretrained(aside)
    return figures


def _batch(images: np.ndarray, settings: Settings, step: int) -> Tensor:
    """Return the pixels of one step, drawn by (seed, step): crops, half-size images, or whole images."""
    rng = np.random.default_rng((settings.seed, step))
    whole = step >= settings.whole_from * settings.steps
    small = rng.random() < settings.small_share
    count = settings.batch // 4 if whole and not small else settings.batch
    chosen = images[np.sort(rng.choice(len(images), count, replace=False))]
    if small:
        return avg_pool2d(to_pixels(chosen), 2)
    if whole:
        return to_pixels(chosen)
    side, margin = settings.crop, chosen.shape[1] - settings.crop
    # Objects are near the center of a scene, so crops are, too.
    corners = np.clip(rng.normal(margin / 2, margin / 4, (count, 2)).round().astype(int), 0, margin)
    crops = [image[y : y + side, x : x + side] for image, (y, x) in zip(chosen, corners, strict=True)]
    return to_pixels(np.stack(crops))


def train_autoencoder(settings: Settings, out: Path, resume: bool = False) -> Iterator[dict]:
    """Train on rendered scenes, yield rows of metrics, and write `out/vae`.

    The loss is L1 on pixels and on their differences, MSE, and a small KL term. With `resume` the run
    continues from its last checkpoint.

    Raises:
        LuminaError: if there is nothing to resume, or the saved state is damaged or of another network.
    """
    images, _ = render_images(settings.seed, settings.scenes, out)
    unseen, _ = render_images(UNSEEN, 240, out)
    torch.manual_seed(settings.seed)
    model = build_autoencoder().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)

    def train_step(step: int) -> dict[str, float]:
        loss, kl = _loss(model, _batch(images, settings, step), settings, step)
        descend(model, optimizer, loss, settings.lr * cosine_rate(step, settings.steps, warmup=200), clip=1.0)
        return {"loss": loss.item(), "kl": kl.item()}

    yield from fit(
        TrainingProgress(out / "autoencoder.pt", model, optimizer, settings),
        train_step,
        lambda: _save(model, unseen, out / "vae"),
        log_every=50,
        measures=True,
        resume=resume,
    )

"""Image latents: an AutoencoderKL, with the shift and scale that the transformer is trained with.

B images, C channels, H W size in pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging
from torch import Tensor

from lumina_cli.core.weights.config_check import check_config
from lumina_cli.core.weights.files import raise_misfit


class Autoencoder:
    """The AutoencoderKL in the vae/ of a model folder.

    channels   C, channels of the latents
    factor     pixels per latent, in width and height

    Raises:
        LuminaError: if tensors are missing, unexpected or misshaped; the message names them.
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        model = load_autoencoder(Path(folder) / "vae", dtype)
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale: float = config.scaling_factor
        self.shift: float = config.shift_factor or 0.0

    def enable_tiling(self, tile: int | None = None) -> "Autoencoder":
        """Process one image at a time (slicing), and large images in tiles, to save memory; returns itself.

        tile   side of a tile in latents; None: no tiling

        Tiles overlap by a quarter and are blended. Group norms see one tile at a time, so pixels differ
        slightly from those of an image decoded as a whole.
        """
        self.model.enable_slicing()
        if tile is not None:
            self.model.tile_latent_min_size, self.model.tile_sample_min_size = tile, tile * self.factor
            self.model.enable_tiling()
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1]; return the mode, (B, C, H / factor, W / factor) float32."""
        mode = self.model.encode(pixels.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (mode.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, H / factor, W / factor); return pixels (B, 3, H, W), about -1 to 1."""
        latents = latents.to(self.model.device).float() / self.scale + self.shift
        return self.model.decode(latents.to(self.model.dtype), return_dict=False)[0]


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the autoencoder for a transformer in `dtype`: bfloat16, as officially, or float32.

    float16 overflows in this autoencoder.
    """
    return dtype if dtype == torch.bfloat16 else torch.float32


def load_autoencoder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """Return the AutoencoderKL in `folder`.

    Raises:
        LuminaError: if the weights do not fit the config.
    """
    check_config(folder)
    with quiet_diffusers():
        model, found = AutoencoderKL.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # raise_misfit reports them together with missing tensors
            output_loading_info=True,
        )
    raise_misfit(str(folder), found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    return model


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Disable the warnings of diffusers inside the block; errors report the same tensors in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

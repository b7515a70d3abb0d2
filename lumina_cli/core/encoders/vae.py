"""Picture latents: an AutoencoderKL with the shift and scale that the network was trained with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging
from torch import Tensor

from lumina_cli.core.weights.files import raise_misfit


class Autoencoder:
    """The AutoencoderKL in the vae/ of a model folder.

    channels   C, of the latents
    factor     how many pixels wide and high one latent is

    LuminaError names the tensors that are missing, unexpected or misshaped, if any.
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        model = read_autoencoder(Path(folder) / "vae", dtype)
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale: float = config.scaling_factor
        self.shift: float = config.shift_factor or 0.0

    def frugal(self, tile: int | None = None) -> "Autoencoder":
        """Take one picture at a time from now on, and larger ones in tiles of `tile` latents; returns itself.

        Tiles overlap by a quarter and are blended, without a visible seam, but each is normalised by itself:
        pixels differ a little from those of a picture decoded whole.
        """
        self.model.enable_slicing()
        if tile is not None:
            self.model.tile_latent_min_size, self.model.tile_sample_min_size = tile, tile * self.factor
            self.model.enable_tiling()
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, H / factor, W / factor) in float32: the mode."""
        mode = self.model.encode(pixels.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (mode.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), about -1 to 1, of latents (B, C, H / factor, W / factor)."""
        latents = latents.to(self.model.device).float() / self.scale + self.shift
        return self.model.decode(latents.to(self.model.dtype), return_dict=False)[0]


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an autoencoder computes in beside a network in `dtype`: bfloat16, as officially, or float32.

    float16 has not the range for it.
    """
    return dtype if dtype == torch.bfloat16 else torch.float32


def read_autoencoder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """The AutoencoderKL in `folder`; LuminaError where its weights are not those of its config."""
    with quiet_diffusers():
        model, found = AutoencoderKL.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are told here, together with what is missing
            output_loading_info=True,
        )
    raise_misfit(str(folder), found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    return model


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep diffusers from warning about tensors inside the block: an error says the same in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

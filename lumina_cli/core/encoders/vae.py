"""Picture latents: an AutoencoderKL with the shift and scale that the network was trained with."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor


class Autoencoder:
    """The AutoencoderKL in the vae/ of a model folder.

    channels   C, of the latents
    factor     how many pixels wide and high one latent is
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        model = AutoencoderKL.from_pretrained(
            Path(folder) / "vae", torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale: float = config.scaling_factor
        self.shift: float = config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (B, C, H / factor, W / factor), the mode, of pixels (B, 3, H, W) in [-1, 1]."""
        mode = self.model.encode(pixels.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (mode - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), about -1 to 1, of latents (B, C, H / factor, W / factor)."""
        latents = latents.to(self.model.device, self.model.dtype)
        return self.model.decode(latents / self.scale + self.shift, return_dict=False)[0]

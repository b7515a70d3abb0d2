"""Unified Next-DiT: text and image tokens are refined separately, then processed as one sequence.

B batch entries, M text tokens, N image tokens, C channels, H W latent size, T text width, D width, A width of
the time embedding, p patch side. Source: Lumina-Image 2.0, "Unified Next-DiT".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lumina_cli.core.nextdit.blocks import Block, FinalLayer, RMSNorm, TimeEmbedding
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.packed.forward import RunLayers, packed_velocity
from lumina_cli.core.nextdit.sequence import (
    EncodedText,
    InvalidInput,
    check_images,
    key_mask,
    padded_layout,
    patchify,
    patchify_all,
    text_lengths,
    text_rotation,
    unpatchify_like,
)


class NextDiT(nn.Module):
    """The velocity network of Lumina-Image 2.0.

    Parameter names are the published ones, without the unused `norm_final`. The residual stream has
    the dtype of the weights, so autocast does not round it.

        config          the shapes
        checkpointing   recompute the main layers in the backward pass (gradient checkpointing)
        kernel          attention implementation without gradients: a name of `kernels.dispatch`, or auto
        fused           without gradients, compile the elementwise operations between matmuls

    Source: Lumina-Image 2.0, "Unified Next-DiT".
    """

    def __init__(self, config: NextDiTConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.kernel = "auto"
        self.fused = False
        self.x_embedder = nn.Linear(config.patch_size**2 * config.in_channels, config.dim)
        self.noise_refiner = nn.ModuleList(Block(config, True) for _ in range(config.num_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, False) for _ in range(config.num_refiner_layers))
        self.t_embedder = TimeEmbedding(config.time_dim)
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.text_dim, config.norm_eps), nn.Linear(config.text_dim, config.dim)
        )
        self.layers = nn.ModuleList(Block(config, True) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        self.init_weights()

    def forward(
        self,
        latents: Tensor | Sequence[Tensor],
        t: Tensor,
        text: Tensor | EncodedText,
        text_mask: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity of noisy latents, given a caption.

        B images, M text tokens, C channels, H W latent size, T text width.

            latents    (B, C, H, W)   at time t; or a list of (C, H, W) of mixed sizes
            t          (B,)           0 is noise, 1 is data
            text       (B, M, T)      features of the text encoder, or the result of `encode_text`. With kB
                                      captions: all images with the first B, then with the next B...
            text_mask  (B, M)         True where a token is real; real tokens come first; None: all are real
            returns    like latents   data - noise; k times as many entries for kB captions

        Without gradients and autocast, `velocity_packed` computes the same without padding.

        Raises:
            ValueError: if H or W is not a multiple of the patch size or exceeds the position table, if a
                caption has more tokens than the table, or if the batch sizes differ.

        Source: Lumina-Image 2.0, "Unified Next-DiT".
        """
        if not (torch.is_grad_enabled() or torch.is_autocast_enabled(t.device.type)):
            return self.velocity_packed(latents, t, text, text_mask)
        sizes, text = self._prepare(latents, t, text, text_mask)
        repeats = len(sizes) // len(latents)
        tokens = self.velocity_tokens(_repeated(latents, repeats), sizes, t.repeat(repeats), text)
        return unpatchify_like(tokens, sizes, self.config.patch_size, latents)

    def encode_text(self, text: Tensor, text_mask: Tensor | None = None) -> EncodedText:
        """Embed and refine captions: the part of the network that does not depend on time, once per prompt.

            text        (B, M, T)   features of the text encoder
            text_mask   (B, M)      True where a token is real; real tokens come first; None: all are real
            returns     EncodedText, which `forward` takes instead of features

        Raises:
            ValueError: if a caption is empty or too long, or if padding precedes a real token.
        """
        lengths = text_lengths(text, text_mask, self.config)
        text = text[:, : max(lengths)].to(self.dtype)
        mask = key_mask(lengths, text.device)
        if mask is not None:  # padding may hold NaN, which a masked key would still spread: 0 * NaN is NaN
            text = text.masked_fill(~mask[..., None], 0)
        x = self.cap_embedder(text).to(self.dtype)  # (B, M, D)
        rotation = text_rotation(self.config, max(lengths), text.device)
        for block in self.context_refiner:
            x = block(x, mask, *rotation)
        return EncodedText(x, lengths)

    def velocity_tokens(
        self, latents: Tensor | Sequence[Tensor], sizes: list[tuple[int, int]], t: Tensor, text: EncodedText
    ) -> Tensor:
        """Return the velocity as image tokens (B, N, p*p*C); tokens that pad a smaller image are meaningless.

        sizes   (H, W) of each entry
        """
        patch = self.config.patch_size
        grids = tuple((height // patch, width // patch) for height, width in sizes)
        layout = padded_layout(self.config, text.lengths, grids, text.features.device)
        tokens = patchify(latents, patch) if isinstance(latents, Tensor) else patchify_all(latents, patch)
        c = self.t_embedder(t)  # (B, A)
        x = self.x_embedder(tokens.to(self.dtype)).to(self.dtype)  # (B, N, D)
        for block in self.noise_refiner:
            x = block(x, layout.image_mask, *layout.image, c)
        x = torch.cat([text.features, x], dim=1)  # (B, M + N, D)
        for block in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout.joint_mask, *layout.joint, c, use_reentrant=False)
            else:
                x = block(x, layout.joint_mask, *layout.joint, c)
        return self.final_layer(x[:, text.features.shape[1] :], c)

    @torch.no_grad()
    def velocity_packed(
        self,
        latents: Tensor | Sequence[Tensor],
        t: Tensor,
        text: Tensor | EncodedText,
        text_mask: Tensor | None = None,
        run_layers: RunLayers | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity without gradients and without padding; see `forward` and `packed.forward`.

        run_layers   called instead of the main layers, for caches and recorders: LayerStack -> image tokens
                     (N, D) of each entry, as returned by its `run`
        """
        sizes, text = self._prepare(latents, t, text, text_mask)
        tokens = packed_velocity(self, latents, sizes, t, text, run_layers)
        return unpatchify_like(tokens, sizes, self.config.patch_size, latents)

    def _prepare(
        self,
        latents: Tensor | Sequence[Tensor],
        t: Tensor,
        text: Tensor | EncodedText,
        text_mask: Tensor | None,
    ) -> tuple[list[tuple[int, int]], EncodedText]:
        """Check the inputs of `forward`; return (H, W) of each of kB entries, and the encoded captions."""
        check_images([tuple(image.shape) for image in latents], self.config)
        if not isinstance(text, EncodedText):
            text = self.encode_text(text, text_mask)
        if not len(t) or len(latents) != len(t) or len(text.lengths) % len(t):
            raise InvalidInput(
                f"batch sizes differ: {len(latents)} latents, {len(t)} times, {len(text.lengths)} captions"
            )
        sizes = [(image.shape[1], image.shape[2]) for image in latents]
        return sizes * (len(text.lengths) // len(t)), text

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.x_embedder.weight.dtype

    def init_weights(self) -> None:
        """Initialize all weights: modulated blocks start as identities, and the velocity is exactly zero."""
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(layer.weight)
            elif name.startswith("t_embedder"):
                nn.init.normal_(layer.weight, std=0.02)
            elif name.startswith("cap_embedder"):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(layer.weight)


def _repeated(latents: Tensor | Sequence[Tensor], repeats: int) -> Tensor | Sequence[Tensor]:
    if repeats == 1:
        return latents
    return latents.repeat(repeats, 1, 1, 1) if isinstance(latents, Tensor) else [*latents] * repeats

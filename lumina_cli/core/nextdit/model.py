"""Unified Next-DiT: one sequence of text and image tokens, refined apart, then read together."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lumina_cli.core.nextdit.blocks import Block, FinalLayer, RMSNorm, TimeEmbedding
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.sequence import (
    EncodedText,
    UnfitInput,
    check_pictures,
    key_mask,
    lay_out,
    patchify,
    patchify_all,
    text_lengths,
    text_rotation,
    unpatchify,
)


class NextDiT(nn.Module):
    """The velocity network of Lumina-Image 2.0.

    Parameter names are the published ones, without the `norm_final` that no forward pass reads. The residual
    stream has the dtype of the weights, so autocast does not round it. Set `checkpointing` to recompute the
    main layers in the backward pass instead of keeping what is inside them.
    """

    def __init__(self, config: NextDiTConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.x_embedder = nn.Linear(config.patch_size**2 * config.in_channels, config.dim)
        self.noise_refiner = nn.ModuleList(Block(config, True) for _ in range(config.num_refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, False) for _ in range(config.num_refiner_layers))
        self.t_embedder = TimeEmbedding(config.time_dim)
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.text_dim, config.norm_eps), nn.Linear(config.text_dim, config.dim)
        )
        self.layers = nn.ModuleList(Block(config, True) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        self.initialise()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.x_embedder.weight.dtype

    def initialise(self) -> None:
        """Draw the first weights: modulated blocks start as identities, and the velocity as exactly zero."""
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

    def forward(
        self,
        latents: Tensor | Sequence[Tensor],
        t: Tensor,
        text: Tensor | EncodedText,
        text_mask: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity of noisy latents, given a caption.

        B pictures, M text tokens, C channels, H W latent size, T text width.

            latents    (B, C, H, W)   at time t; or a list of (C, H, W) of mixed sizes
            t          (B,)           0 is noise, 1 is data
            text       (B, M, T)      features of the text encoder; or what `encode_text` made of them
            text_mask  (B, M)         True where a token is real; real tokens come first; None: all are real
            returns    like latents   data - noise

        Raises ValueError where H or W is not a multiple of the patch size or leaves the position table, where
        a caption has more tokens than the table holds, and where the batch sizes differ.
        """
        check_pictures([tuple(picture.shape) for picture in latents], self.config)
        if not isinstance(text, EncodedText):
            text = self.encode_text(text, text_mask)
        if not len(latents) == len(t) == len(text.lengths):
            raise UnfitInput(
                f"{len(latents)} latents, {len(t)} times and {len(text.lengths)} captions do not pair"
            )
        sizes = [tuple(picture.shape[1:]) for picture in latents]
        tokens = self.velocity_tokens(latents, sizes, t, text)
        patch = self.config.patch_size
        if isinstance(latents, Tensor):
            return unpatchify(tokens, sizes[0], patch).to(latents.dtype)
        counts = [height * width // patch**2 for height, width in sizes]
        return [
            unpatchify(rows[None, :count], size, patch)[0].to(picture.dtype)
            for rows, count, size, picture in zip(tokens, counts, sizes, latents, strict=True)
        ]

    def encode_text(self, text: Tensor, text_mask: Tensor | None = None) -> EncodedText:
        """Embed and refine captions (B, M, T): the part that does not depend on time, once per prompt.

        Raises ValueError where a caption is empty or too long, or real tokens do not come first.
        """
        lengths = text_lengths(text, text_mask, self.config)
        text = text[:, : max(lengths)].to(self.dtype)
        mask = key_mask(lengths, text.device)
        if mask is not None:  # whatever stands in the padding, NaN included, must not reach a product
            text = text.masked_fill(~mask[..., None], 0)
        x = self.cap_embedder(text).to(self.dtype)
        rotation = text_rotation(self.config, max(lengths), text.device)
        for block in self.context_refiner:
            x = block(x, mask, *rotation)
        return EncodedText(x, lengths)

    def velocity_tokens(
        self, latents: Tensor | Sequence[Tensor], sizes: list[tuple[int, int]], t: Tensor, text: EncodedText
    ) -> Tensor:
        """The velocity as image tokens (B, N, p*p*C); those behind a smaller picture mean nothing."""
        patch = self.config.patch_size
        grids = tuple((height // patch, width // patch) for height, width in sizes)
        layout = lay_out(self.config, text.lengths, grids, text.features.device)
        tokens = patchify(latents, patch) if isinstance(latents, Tensor) else patchify_all(latents, patch)
        c = self.t_embedder(t)
        x = self.x_embedder(tokens.to(self.dtype)).to(self.dtype)
        for block in self.noise_refiner:
            x = block(x, layout.image_mask, *layout.image, c)
        x = torch.cat([text.features, x], dim=1)
        for block in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout.joint_mask, *layout.joint, c, use_reentrant=False)
            else:
                x = block(x, layout.joint_mask, *layout.joint, c)
        return self.final_layer(x[:, text.features.shape[1] :], c)

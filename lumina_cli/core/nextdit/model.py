"""Unified Next-DiT: one sequence of text and image tokens, refined apart, then read together."""

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lumina_cli.core.kernels.dispatch import choose_kernel
from lumina_cli.core.nextdit.blocks import Block, FinalLayer, RMSNorm, TimeEmbedding
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.packed.forward import (
    PackedLayout,
    Scratch,
    packed_final_layer,
    packed_layout,
    run_block,
)
from lumina_cli.core.nextdit.packed.layer_stack import LayerStack
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
    unpatchify,
)

Through = Callable[[LayerStack], list[Tensor]]


class NextDiT(nn.Module):
    """The velocity network of Lumina-Image 2.0.

    Parameter names are the published ones, without the `norm_final` that no forward pass reads. The residual
    stream has the dtype of the weights, so autocast does not round it.

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
        through: Through | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity of noisy latents, given a caption.

        B images, M text tokens, C channels, H W latent size, T text width.

            latents    (B, C, H, W)   at time t; or a list of (C, H, W) of mixed sizes
            t          (B,)           0 is noise, 1 is data
            text       (B, M, T)      features of the text encoder, or the result of `encode_text`. With kB
                                      captions: all images with the first B, then with the next B...
            text_mask  (B, M)         True where a token is real; real tokens come first; None: all are real
            through    replaces the main layers, without gradients only: maps a LayerStack to the image tokens
                       of each batch entry, as its `run` returns them
            returns    like latents   data - noise; k times as many entries for kB captions

        Without gradients and autocast, batch entries of any length are packed without padding (`packed/`).

        Raises:
            ValueError: if H or W is not a multiple of the patch size or exceeds the position table, if a
                caption has more tokens than the table, or if the batch sizes differ.

        Source: Lumina-Image 2.0, "Unified Next-DiT".
        """
        check_images([tuple(picture.shape) for picture in latents], self.config)
        if not isinstance(text, EncodedText):
            text = self.encode_text(text, text_mask)
        if not len(t) or len(latents) != len(t) or len(text.lengths) % len(t):
            raise InvalidInput(
                f"{len(latents)} latents, {len(t)} times and {len(text.lengths)} captions do not pair"
            )
        times = len(text.lengths) // len(t)
        sizes = [tuple(picture.shape[1:]) for picture in latents] * times
        gradients = torch.is_grad_enabled() or torch.is_autocast_enabled(t.device.type)
        if through is not None or not gradients:
            rows = self.velocity_packed(latents, sizes, t, text, through)
        else:
            if times > 1:
                whole = isinstance(latents, Tensor)
                latents = latents.repeat(times, 1, 1, 1) if whole else [*latents] * times
            rows = self.velocity_tokens(latents, sizes, t.repeat(times), text)
        patch = self.config.patch_size
        if isinstance(latents, Tensor):
            rows = rows if isinstance(rows, Tensor) else torch.stack(rows)
            return unpatchify(rows, sizes[0], patch).to(latents.dtype)
        counts = [height * width // patch**2 for height, width in sizes]
        return [
            unpatchify(tokens[None, :count], size, patch)[0].to(picture.dtype)
            for tokens, count, size, picture in zip(rows, counts, sizes, cycle(latents), strict=False)
        ]

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
        layout = padded_layout(self.config, text.lengths, grids, text.features.device)
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

    @torch.no_grad()
    def velocity_packed(
        self,
        latents: Tensor | Sequence[Tensor],
        sizes: list[tuple[int, int]],
        t: Tensor,
        text: EncodedText,
        through: Through | None,
    ) -> list[Tensor]:
        """The velocity as image tokens of each row (N, p*p*C), without gradients.

        Pictures are refined once for all their captions: among tokens of one picture the caption's length,
        where they all stand on the first axis, turns nothing.
        """
        patch = self.config.patch_size
        grids = tuple((height // patch, width // patch) for height, width in sizes)

        def packs(rows: tuple[int, ...]) -> tuple[PackedLayout, PackedLayout]:
            lengths = tuple(text.lengths[row] for row in rows)
            return packed_layout(
                self.config, lengths, tuple(grids[row] for row in rows), text.features.device
            )

        joint, pictures = packs(tuple(range(len(sizes))))
        apart = pictures if len(latents) == len(sizes) else packs(tuple(range(len(latents))))[1]
        c = self.t_embedder(t[:1] if len(t) == 1 or bool((t == t[0]).all()) else t)
        tokens = torch.cat([patchify(picture[None], patch)[0] for picture in latents])
        x = self.x_embedder(tokens.to(self.dtype)).float()
        kernel = choose_kernel(self.kernel, x.device, self.dtype)
        scratch = Scratch(kernel, self.fused)
        for block in self.noise_refiner:
            x = run_block(block, x, apart, c, scratch)
        if len(c) > 1:
            c = c.repeat(len(sizes) // len(c), 1)
        rows = zip(text.features, text.lengths, cycle(apart.rows), strict=False)
        x = torch.cat([part for own, length, row in rows for part in (own[:length].float(), x[row])])
        stage = LayerStack(self.layers, x, c, joint, lambda rows: packs(rows)[0], scratch)
        outs = through(stage) if through else stage.run(range(stage.rows))
        x = torch.cat(outs) if len(outs) > 1 else outs[0]
        return list(packed_final_layer(self.final_layer, x, pictures, c).split([len(out) for out in outs]))

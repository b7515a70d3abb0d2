"""The forward pass of Next-DiT on a packed batch, without gradients: the same velocity as `NextDiT.forward`.

B batch entries, T tokens of all entries, M text tokens and N image tokens of an entry, C channels, D width,
p patch side.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from lumina_cli.core.kernels.dispatch import choose_kernel
from lumina_cli.core.nextdit.packed.block import Scratch, packed_final_layer, run_block
from lumina_cli.core.nextdit.packed.layer_stack import LayerStack
from lumina_cli.core.nextdit.packed.layout import PackedLayout, packed_layout
from lumina_cli.core.nextdit.sequence import EncodedText, patchify

RunLayers = Callable[[LayerStack], list[Tensor]]


def packed_velocity(
    model,
    latents: Tensor | Sequence[Tensor],
    sizes: list[tuple[int, int]],
    t: Tensor,
    text: EncodedText,
    run_layers: RunLayers | None = None,
) -> list[Tensor]:
    """Return the velocity of each batch entry as image tokens (N, p*p*C).

        model       a NextDiT
        latents     (C, H, W) each; fewer than entries if each has several captions, see `NextDiT.forward`
        sizes       (H, W) of each entry
        t           (latents,)
        text        B captions
        run_layers  called instead of the main layers: LayerStack -> image tokens of each entry, as its `run`

    Each image passes the noise refiner once for all its captions. There, all tokens of an image have the same
    position on the first axis, the caption's length, and a common rotation cancels in attention.
    """
    patch = model.config.patch_size
    grids = tuple((height // patch, width // patch) for height, width in sizes)

    def layouts(entries: tuple[int, ...]) -> tuple[PackedLayout, PackedLayout]:
        lengths = tuple(text.lengths[entry] for entry in entries)
        return packed_layout(
            model.config, lengths, tuple(grids[entry] for entry in entries), text.features.device
        )

    joint, images = layouts(tuple(range(len(sizes))))
    refined = images if len(latents) == len(sizes) else layouts(tuple(range(len(latents))))[1]
    c = model.t_embedder(t[:1] if len(t) == 1 or bool((t == t[0]).all()) else t)
    tokens = torch.cat([patchify(image[None], patch)[0] for image in latents])
    x = model.x_embedder(tokens.to(model.dtype)).float()
    scratch = Scratch(choose_kernel(model.kernel, x.device, model.dtype), model.fused)
    for block in model.noise_refiner:
        x = run_block(block, x, refined, c, scratch)
    if len(c) > 1:
        c = c.repeat(len(sizes) // len(c), 1)
    entries = zip(text.features, text.lengths, cycle(refined.entries), strict=False)
    x = torch.cat([part for own, length, tokens in entries for part in (own[:length].float(), x[tokens])])
    stack = LayerStack(model.layers, x, c, joint, lambda entries: layouts(entries)[0], scratch)
    outs = run_layers(stack) if run_layers else stack.run(range(stack.entries))
    x = torch.cat(outs) if len(outs) > 1 else outs[0]
    return list(packed_final_layer(model.final_layer, x, images, c).split([len(out) for out in outs]))

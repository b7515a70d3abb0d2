"""The main layers of one network call, for code that inspects their input or skips some of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lumina_cli.core.nextdit.packed.block import NormGain, Scratch, modulation, normed, run_block
from lumina_cli.core.nextdit.packed.layout import PackedLayout


class LayerStack:
    """The tokens of B batch entries before the main layers, and the layers to run on them.

    L tokens of an entry (its text, then its image), N image tokens of an entry, D width, T tokens of all
    entries, A width of the time embedding. All tensors have the dtype of the residual stream; none is
    overwritten later.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        c: Tensor,
        layout: PackedLayout,
        layout_of: Callable[[tuple[int, ...]], PackedLayout],
        scratch: Scratch,
    ):
        """Wrap the layers and their input.

        x           (T, D)        tokens of all entries
        c           (1 or B, A)   time embedding
        layout      of all entries
        layout_of   entries -> their layout
        """
        self.layers, self.x, self.c, self.layout, self.layout_of = layers, x, c, layout, layout_of
        self.entries = len(layout.texts)
        self.scratch = scratch
        self.started: dict[int, Tensor] = {}

    def image(self, entry: int) -> Tensor:
        """Return the image tokens of an entry before the main layers, (N, D)."""
        return self.x[self.layout.images[entry]]

    def signal(self, entry: int) -> Tensor:
        """Return the attention input of main layer 0, normalized and modulated, (L, D)."""
        block, c = self.layers[0], self._time_of((entry,))
        norm, x = block.attention_norm1, self.x[self.layout.entries[entry]]
        gain = NormGain(norm.weight, modulation(block, c)[0], [len(x)])
        return normed(x, norm.eps, gain, slice(0, len(x)), x.dtype)

    def first(self, entries: Sequence[int]) -> list[Tensor]:
        """Return the image tokens of each of `entries` after main layer 0, (N, D); `run` continues there."""
        new = tuple(entry for entry in entries if entry not in self.started)
        if new:
            layout, x = self._gather(new)
            x = run_block(self.layers[0], x, layout, self._time_of(new), self.scratch)
            self.started |= {entry: x[tokens] for entry, tokens in zip(new, layout.entries, strict=True)}
        return [self.started[entry][self.layout.texts[entry] :] for entry in entries]

    def run(self, entries: Sequence[int]) -> list[Tensor]:
        """Return the image tokens of each of `entries` after all main layers, (N, D); skip other entries."""
        entries, layers = tuple(entries), self.layers
        if not entries:
            return []
        if self.started.keys() & set(entries):
            self.first(entries)
            layout, x = self.layout_of(entries), torch.cat([self.started[entry] for entry in entries])
            layers = layers[1:]
        else:
            layout, x = self._gather(entries)
        c = self._time_of(entries)
        for block in layers[:-1]:
            x = run_block(block, x, layout, c, self.scratch)
        if not len(layers):
            return [x[image] for image in layout.images]
        x = run_block(layers[-1], x, layout, c, self.scratch, last=True)
        return list(x.split([image.stop - image.start for image in layout.images]))

    def _gather(self, entries: tuple[int, ...]) -> tuple[PackedLayout, Tensor]:
        """Return the layout of `entries` and a copy of their tokens."""
        if entries == tuple(range(self.entries)):
            return self.layout, self.x.clone()
        return self.layout_of(entries), torch.cat([self.x[self.layout.entries[entry]] for entry in entries])

    def _time_of(self, entries: tuple[int, ...]) -> Tensor:
        return self.c if len(self.c) == 1 else self.c[list(entries)]

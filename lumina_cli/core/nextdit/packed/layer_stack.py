"""The main layers of one network call, for code that inspects their input or skips some of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lumina_cli.core.nextdit.packed.block import NormGain, Scratch, modulation, normed, run_block
from lumina_cli.core.nextdit.packed.layout import PackedLayout


class LayerStack:
    """The tokens of B batch entries ("rows") before the main layers, and the layers to run on them.

    L tokens of a row (its text, then its image), N image tokens of a row, D width, T tokens of all rows, A
    width of the time embedding. All tensors have the dtype of the residual stream; none is overwritten later.
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

        x           (T, D)        tokens of all rows
        c           (1 or B, A)   time embedding
        layout      of all rows
        layout_of   rows -> their layout
        """
        self.layers, self.x, self.c, self.layout, self.layout_of = layers, x, c, layout, layout_of
        self.rows = len(layout.texts)
        self.scratch = scratch
        self.started: dict[int, Tensor] = {}

    def image(self, row: int) -> Tensor:
        """Return the image tokens of a row before the main layers, (N, D)."""
        return self.x[self.layout.images[row]]

    def signal(self, row: int) -> Tensor:
        """Return the attention input of main layer 0, normalized and modulated, (L, D)."""
        block, c = self.layers[0], self._time_of((row,))
        norm, x = block.attention_norm1, self.x[self.layout.rows[row]]
        gain = NormGain(norm.weight, modulation(block, c)[0], [len(x)])
        return normed(x, norm.eps, gain, slice(0, len(x)), x.dtype)

    def first(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the image tokens of each of `rows` after main layer 0, (N, D); `run` continues there."""
        new = tuple(row for row in rows if row not in self.started)
        if new:
            layout, x = self._gather(new)
            x = run_block(self.layers[0], x, layout, self._time_of(new), self.scratch)
            self.started |= {row: x[tokens] for row, tokens in zip(new, layout.rows, strict=True)}
        return [self.started[row][self.layout.texts[row] :] for row in rows]

    def run(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the image tokens of each of `rows` after all main layers, (N, D); skip other rows."""
        rows, layers = tuple(rows), self.layers
        if not rows:
            return []
        if self.started.keys() & set(rows):
            self.first(rows)
            layout, x = self.layout_of(rows), torch.cat([self.started[row] for row in rows])
            layers = layers[1:]
        else:
            layout, x = self._gather(rows)
        c = self._time_of(rows)
        for block in layers[:-1]:
            x = run_block(block, x, layout, c, self.scratch)
        if not len(layers):
            return [x[image] for image in layout.images]
        x = run_block(layers[-1], x, layout, c, self.scratch, last=True)
        return list(x.split([image.stop - image.start for image in layout.images]))

    def _gather(self, rows: tuple[int, ...]) -> tuple[PackedLayout, Tensor]:
        """Return the layout of `rows` and a copy of their tokens."""
        if rows == tuple(range(self.rows)):
            return self.layout, self.x.clone()
        return self.layout_of(rows), torch.cat([self.x[self.layout.rows[row]] for row in rows])

    def _time_of(self, rows: tuple[int, ...]) -> Tensor:
        return self.c if len(self.c) == 1 else self.c[list(rows)]

"""The main layers of one call, opened for what wants to look at them or to leave some of them out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lumina_cli.core.nextdit.packed.forward import (
    NormGain,
    PackedLayout,
    Scratch,
    modulation,
    normed,
    run_block,
)


class LayerStack:
    """The tokens of B rows before the main layers, and the layers to run on them.

    N image tokens of a row, L tokens of a row (its text, then its picture), D width. All tensors are in the
    dtype of the residual stream, and nothing writes to them afterwards.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        c: Tensor,
        pack: PackedLayout,
        pack_of: Callable[[tuple[int, ...]], PackedLayout],
        scratch: Scratch,
    ):
        """x (T, D) of the rows in `pack`; c (1 or B, A); `pack_of` gives the pack of some of the rows."""
        self.layers, self.x, self.c, self.pack, self.pack_of = layers, x, c, pack, pack_of
        self.rows = len(pack.texts)
        self.scratch = scratch
        self.started: dict[int, Tensor] = {}

    def image(self, row: int) -> Tensor:
        """(N, D): image tokens of a row as they enter the main layers."""
        return self.x[self.pack.images[row]]

    def signal(self, row: int) -> Tensor:
        """(L, D): what attention reads in main layer 0: normalised, scaled by the time."""
        block, c = self.layers[0], self._times((row,))
        norm, x = block.attention_norm1, self.x[self.pack.rows[row]]
        gain = NormGain(norm.weight, modulation(block, c)[0], [len(x)])
        return normed(x, norm.eps, gain, slice(0, len(x)), x.dtype)

    def first(self, rows: Sequence[int]) -> list[Tensor]:
        """(N, D) of each of `rows`: image tokens after main layer 0; `run` goes on from there."""
        new = tuple(row for row in rows if row not in self.started)
        if new:
            pack, x = self._gather(new)
            x = run_block(self.layers[0], x, pack, self._times(new), self.scratch)
            self.started |= {row: x[part] for row, part in zip(new, pack.rows, strict=True)}
        return [self.started[row][self.pack.texts[row] :] for row in rows]

    def run(self, rows: Sequence[int]) -> list[Tensor]:
        """(N, D) of each of `rows`: image tokens after all main layers; other rows are not computed."""
        rows, layers = tuple(rows), self.layers
        if not rows:
            return []
        if self.started.keys() & set(rows):
            self.first(rows)
            pack, x = self.pack_of(rows), torch.cat([self.started[row] for row in rows])
            layers = layers[1:]
        else:
            pack, x = self._gather(rows)
        c = self._times(rows)
        for block in layers[:-1]:
            x = run_block(block, x, pack, c, self.scratch)
        if not len(layers):
            return [x[part] for part in pack.images]
        x = run_block(layers[-1], x, pack, c, self.scratch, last=True)
        return list(x.split([part.stop - part.start for part in pack.images]))

    def _gather(self, rows: tuple[int, ...]) -> tuple[PackedLayout, Tensor]:
        """The pack of some rows and a copy of their tokens."""
        if rows == tuple(range(self.rows)):
            return self.pack, self.x.clone()
        return self.pack_of(rows), torch.cat([self.x[self.pack.rows[row]] for row in rows])

    def _times(self, rows: tuple[int, ...]) -> Tensor:
        return self.c if len(self.c) == 1 else self.c[list(rows)]

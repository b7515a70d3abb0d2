"""The layers without gradients: real tokens of all rows in one matrix, nothing padded, little written twice.

B rows, T tokens of all rows, N image tokens of a row, D width, h heads, g key-value heads, d head width.

Linear layers see the whole matrix, attention each row by itself, and all that is element by element goes
through the matrix in chunks that stay in a processor's cache. The residual stream is float32.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from lumina_cli.core.kernels.attention import attend
from lumina_cli.core.kernels.dispatch import VARIABLE, attend_packed
from lumina_cli.core.nextdit.blocks import Attention, Block, FinalLayer, RMSNorm
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.packed import fused
from lumina_cli.core.nextdit.sequence import image_rotation, text_rotation

CHUNK_BYTES = 2**20  # of float32 at a time where numbers meet one by one: stays in the cache next to a core
# of one result of a linear layer: tokens enough for a weight that is read once, few enough to keep near
SPAN_BYTES = 18 * 2**20


@dataclass(frozen=True)
class PackedLayout:
    """Where the rows lie in the token matrix, and how their tokens turn.

    texts   B numbers       text tokens of each row; its image tokens follow them
    ends    B + 1 numbers   row i is tokens ends[i] to ends[i + 1]
    turns   (T, 1, d/2)     cosine + i sine of every angle, complex64
    """

    texts: tuple[int, ...]
    ends: tuple[int, ...]
    turns: Tensor

    @property
    def rows(self) -> list[slice]:
        """The tokens of each row."""
        return [slice(*ends) for ends in pairwise(self.ends)]

    @property
    def images(self) -> list[slice]:
        """The image tokens of each row."""
        return [slice(row.start + text, row.stop) for row, text in zip(self.rows, self.texts, strict=True)]

    def alike(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first token, rows, tokens of a row, text tokens of a row) of neighbours of one shape."""
        shapes = [(row.stop - row.start, text) for row, text in zip(self.rows, self.texts, strict=True)]
        start = 0
        for (length, text), group in groupby(shapes):
            rows = len(list(group))
            yield start, rows, length, text
            start += rows * length


@lru_cache(maxsize=64)
def packed_rotations(
    config: NextDiTConfig, length: int, grid: tuple[int, int], device: torch.device
) -> Tensor:
    """The turns of one row, (M + N, 1, d/2): a caption of `length` tokens and a picture of `grid` patches."""
    with torch.inference_mode(False), torch.no_grad():
        parts = text_rotation(config, length, device), image_rotation(config, (length,), (grid,), device)
        return torch.cat([torch.complex(part.cos[0], part.sin[0]) for part in parts])[:, None]


# few entries, because a pack of large pictures is large; enough for guidance and for rows that are skipped
@lru_cache(maxsize=8)
def packed_layout(
    config: NextDiTConfig, lengths: tuple[int, ...], grids: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[PackedLayout, PackedLayout]:
    """The packs of whole rows and of their pictures alone: captions of `lengths`, `grids` (rows, columns)."""
    turns = [
        packed_rotations(config, length, grid, device) for length, grid in zip(lengths, grids, strict=True)
    ]
    pictures = [turn[length:] for turn, length in zip(turns, lengths, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        whole, images = (
            PackedLayout(texts, tuple(accumulate(map(len, rows), initial=0)), torch.cat(rows))
            for texts, rows in ((lengths, turns), ((0,) * len(lengths), pictures))
        )
    return whole, images


class Scratch:
    """Memory that every layer of a call writes to again: fresh pages cost more than what is done on them.

    kernel   the attention of `kernels.attention` to call, as `choose_kernel` returns it
    fused    whether what lies between matrix products is compiled; see `fused.py`
    """

    def __init__(self, kernel: str, fused: bool = False):
        self.kernel, self.fused = kernel, fused
        self.kept: dict[tuple, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of that shape, with the dtype and device of `like`; its numbers are anything."""
        key = name, shape, like.dtype
        if key not in self.kept:
            self.kept[key] = like.new_empty(shape)
        return self.kept[key]


class NormGain:
    """A norm's weight times what the time makes of it: one for all tokens, or one for those of each row."""

    def __init__(self, weight: Tensor, values: Tensor | None = None, lengths: Sequence[int] = ()):
        """weight (D,); values (1 or B, D) or None; `lengths` tokens of each row."""
        self.factors = weight.float()[None]
        self.own = None
        if values is not None:
            self.factors = self.factors * values
            if len(values) > 1:
                rows = torch.arange(len(values), device=values.device)
                self.own = rows.repeat_interleave(torch.tensor(lengths, device=values.device))

    def of(self, part: slice) -> Tensor:
        """(1, D), or (tokens of the part, D)."""
        return self.factors if self.own is None else self.factors[self.own[part]]


def cut(x: Tensor, width: int, limit: int, start: int = 0) -> Iterator[slice]:
    """Cut the tokens of `x` into equal parts of at most `limit` bytes, a token having `width`; on a CPU."""
    parts = math.ceil(len(x) * width / limit) if x.device.type == "cpu" else 1
    step = math.ceil(len(x) / parts)
    for begin in range(0, len(x), step):
        yield slice(start + begin, start + min(begin + step, len(x)))


def scale_rows(x: Tensor, eps: float) -> Tensor:
    """x (..., D) in float32 -> (..., 1): one over the root mean square of each row."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def normed(
    x: Tensor, eps: float, gain: NormGain, part: slice, dtype: torch.dtype, fuse: bool = False
) -> Tensor:
    """Tokens `part` of x (T, D) float32, normalised and scaled, in `dtype`."""
    if fuse:
        return fused.compiled(fused.norm)(x[part], gain.of(part), eps, dtype)
    out = x.new_empty((part.stop - part.start, x.shape[1]), dtype=dtype)
    for small in cut(out, 4 * x.shape[1], CHUNK_BYTES, part.start):
        wide = x[small]
        y = (wide * scale_rows(wide, eps)).mul_(gain.of(small))
        out[small.start - part.start : small.stop - part.start] = y
    return out


def add_normed(x: Tensor, y: Tensor, eps: float, gain: NormGain, part: slice, fuse: bool) -> None:
    """Add to tokens `part` of x (T, D) float32, in place, y (tokens, D) normalised and scaled."""
    if fuse:
        fused.compiled(fused.add)(x[part], y, gain.of(part), eps)
        return
    for small in cut(y, 4 * x.shape[1], CHUNK_BYTES, part.start):
        wide = y[small.start - part.start : small.stop - part.start].float()
        x[small].addcmul_(wide * scale_rows(wide, eps), gain.of(small))


def apply_rotation(x: Tensor, norm: RMSNorm, factor: float, turns: Tensor, out: Tensor, fuse: bool) -> None:
    """Write x (T, h, d), normalised, rotated and times `factor`, into out (h, T, d)."""
    if fuse:
        weight = norm.weight.float() * factor
        fused.compiled(fused.rotate)(x, weight, torch.view_as_real(turns), norm.eps, out)
        return
    for small in cut(x, 4 * x.shape[1] * x.shape[2], CHUNK_BYTES):
        wide = x[small].float()
        wide = (wide * scale_rows(wide, norm.eps)).mul_(norm.weight.float() * factor)
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(turns[small])
        out[:, small] = torch.view_as_real(pairs).flatten(-2).transpose(0, 1)


def attended(
    attention: Attention,
    x: Tensor,
    gain: NormGain,
    eps: float,
    pack: PackedLayout,
    scratch: Scratch,
    last: bool,
) -> Tensor:
    """Attention over x (T, D), before its last linear layer; with `last` of the image tokens only."""
    weight, d = attention.q_norm.weight, attention.head_dim
    h, g = (width // d for width in attention.widths[:2])
    q, k, v = (
        scratch.take(name, (heads, len(x), d), weight) for name, heads in (("q", h), ("k", g), ("v", g))
    )
    for part in cut(x, sum(attention.widths) * weight.element_size(), SPAN_BYTES):
        z = normed(x, eps, gain, part, weight.dtype, scratch.fused)
        qkv = attention.qkv(z).unflatten(-1, (-1, d))
        apply_rotation(qkv[:, :h], attention.q_norm, d**-0.5, pack.turns[part], q[:, part], scratch.fused)
        apply_rotation(qkv[:, h : h + g], attention.k_norm, 1.0, pack.turns[part], k[:, part], scratch.fused)
        v[:, part] = qkv[:, h + g :].transpose(0, 1)
    if scratch.kernel in VARIABLE:
        ends = pack.ends
        if last:
            q = torch.cat([q[:, part] for part in pack.images], dim=1)
            ends = list(accumulate((part.stop - part.start for part in pack.images), initial=0))
        y = attend_packed(scratch.kernel, *(part.transpose(0, 1) for part in (q, k, v)), ends, pack.ends)
        return y.flatten(1)
    queries = sum(part.stop - part.start for part in pack.images) if last else len(x)
    y, done = scratch.take("y", (queries, h, d), weight), 0
    for start, rows, length, text in pack.alike():
        whole = slice(start, start + rows * length)
        own = [part[:, whole].unflatten(1, (rows, length)).transpose(0, 1) for part in (q, k, v)]
        if last:
            own[0] = own[0][:, :, text:]
        count = rows * own[0].shape[2]
        attend(*own, 1.0, y[done : done + count].unflatten(0, (rows, -1)), scratch.kernel)
        done += count
    return y.flatten(1)


def run_block(
    block: Block, x: Tensor, pack: PackedLayout, c: Tensor | None, scratch: Scratch, last: bool = False
) -> Tensor:
    """x (T, D) float32 through a block, in place; c (1 or B, A), None for an unmodulated one.

    With `last` only the image tokens of all rows come back, in a matrix of their own.
    """
    attention, feed_forward, eps = block.attention, block.feed_forward, block.attention_norm1.eps
    scale_a, gate_a, scale_f, gate_f = modulation(block, c)
    lengths = [part.stop - part.start for part in pack.rows]
    gain = NormGain(block.attention_norm1.weight, scale_a, lengths)
    y = attended(attention, x, gain, eps, pack, scratch, last)
    if last:
        x = torch.cat([x[picture] for picture in pack.images])
        lengths = [part.stop - part.start for part in pack.images]
    after_a = NormGain(block.attention_norm2.weight, gate_a, lengths)
    before_f = NormGain(block.ffn_norm1.weight, scale_f, lengths)
    after_f = NormGain(block.ffn_norm2.weight, gate_f, lengths)
    for part in cut(x, feed_forward.width * y.element_size(), SPAN_BYTES):
        add_normed(x, attention.out(y[part]), eps, after_a, part, scratch.fused)
        z = normed(x, eps, before_f, part, y.dtype, scratch.fused)
        z = feed_forward.w2(gated(feed_forward.w1(z), feed_forward.w3(z), scratch.fused))
        add_normed(x, z, eps, after_f, part, scratch.fused)
    return x


def gated(x: Tensor, y: Tensor, fuse: bool) -> Tensor:
    """silu(x) y; x may be written to."""
    return fused.compiled(fused.gate)(x, y) if fuse else F.silu(x, inplace=True).mul_(y)


def modulation(block: Block, c: Tensor | None) -> tuple[Tensor | None, ...]:
    """1 + scale and tanh(gate) of attention and of feed-forward, each (1 or B, D) float32; c (1 or B, A)."""
    if c is None:
        return None, None, None, None
    scale_a, gate_a, scale_f, gate_f = block.adaLN_modulation(c).float().chunk(4, dim=-1)
    return 1 + scale_a, gate_a.tanh(), 1 + scale_f, gate_f.tanh()


def packed_final_layer(layer: FinalLayer, x: Tensor, pack: PackedLayout, c: Tensor) -> Tensor:
    """x (T, D) -> (T, p*p*C): the final layer, on image tokens alone."""
    values = 1 + layer.adaLN_modulation(c).float()
    gain = NormGain(torch.ones_like(values[0]), values, [part.stop - part.start for part in pack.rows])
    out = torch.empty(x.shape, dtype=layer.linear.weight.dtype, device=x.device)
    for part in cut(x, 4 * x.shape[1], CHUNK_BYTES):
        out[part] = F.layer_norm(x[part].float(), x.shape[-1:], eps=1e-6) * gain.of(part)
    return layer.linear(out)

"""Transformer blocks on a packed batch, for inference: no padding, and few passes over memory.

B batch entries, T tokens of all entries, D width, h heads, g key-value heads, d head width, A width of the
time embedding. They compute what `nextdit/blocks.py` computes, with the residual stream in float32.

Linear layers run on the whole token matrix, attention on each entry alone, and elementwise operations on
chunks that stay in a processor's cache.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from lumina_cli.core.kernels.attention import attend
from lumina_cli.core.kernels.dispatch import VARIABLE, attend_packed
from lumina_cli.core.nextdit.blocks import Attention, Block, FinalLayer, RMSNorm
from lumina_cli.core.nextdit.packed import fused
from lumina_cli.core.nextdit.packed.layout import PackedLayout

# On a CPU, operations run on chunks of tokens of at most this size:
ELEMENTWISE_CHUNK_BYTES = 2**20  # float32 input of an elementwise operation; fits into the cache of a core
# Output of a linear layer. With more tokens per chunk, its weight is read from memory less often; with fewer,
# the output stays in the cache for the elementwise operations that follow.
LINEAR_CHUNK_BYTES = 18 * 2**20


class Scratch:
    """Buffers that all layers of a call share, since allocating pages costs more than the work on them.

    kernel   the attention to call, as returned by `choose_kernel`
    fused    whether elementwise operations are compiled; see `fused.py`
    """

    def __init__(self, kernel: str, fused: bool = False):
        self.kernel, self.fused = kernel, fused
        self.buffers: dict[tuple, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialized tensor of `shape`, with the dtype and device of `like`."""
        key = name, shape, like.dtype
        if key not in self.buffers:
            self.buffers[key] = like.new_empty(shape)
        return self.buffers[key]


class NormGain:
    """The factor of a normalized token: the norm's weight, times the modulation by the time.

    It is shared by all tokens, or differs between batch entries if their times differ.
    """

    def __init__(self, weight: Tensor, modulation: Tensor | None = None, lengths: Sequence[int] = ()):
        """Combine a norm's weight with its modulation.

        weight      (D,)
        modulation  (1 or B, D) or None
        lengths     tokens of each entry
        """
        self.factors = weight.float()[None]
        self.entry_of_token = None
        if modulation is not None:
            self.factors = self.factors * modulation
            if len(modulation) > 1:
                entries = torch.arange(len(modulation), device=modulation.device)
                repeats = torch.tensor(lengths, device=modulation.device)
                self.entry_of_token = entries.repeat_interleave(repeats)

    def of(self, tokens: slice) -> Tensor:
        """Return the factor of `tokens`: (1, D) or (tokens, D)."""
        return self.factors if self.entry_of_token is None else self.factors[self.entry_of_token[tokens]]


def chunks(x: Tensor, width: int, limit: int, start: int = 0) -> Iterator[slice]:
    """Yield slices that split the tokens of `x` evenly, each of at most `limit` bytes on a CPU.

    width   bytes per token
    start   added to the bounds of all slices
    """
    count = math.ceil(len(x) * width / limit) if x.device.type == "cpu" else 1
    step = math.ceil(len(x) / count)
    for begin in range(0, len(x), step):
        yield slice(start + begin, start + min(begin + step, len(x)))


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / root mean square of each token: (..., D) float32 -> (..., 1)."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def normed(
    x: Tensor, eps: float, gain: NormGain, tokens: slice, dtype: torch.dtype, fuse: bool = False
) -> Tensor:
    """Return RMSNorm(x) times `gain` of the slice `tokens` of x (T, D) float32, in `dtype`."""
    if fuse:
        return fused.compiled(fused.norm)(x[tokens], gain.of(tokens), eps, dtype)
    out = x.new_empty((tokens.stop - tokens.start, x.shape[1]), dtype=dtype)
    for chunk in chunks(out, 4 * x.shape[1], ELEMENTWISE_CHUNK_BYTES, tokens.start):
        wide = x[chunk]
        y = (wide * inverse_rms(wide, eps)).mul_(gain.of(chunk))
        out[chunk.start - tokens.start : chunk.stop - tokens.start] = y
    return out


def add_normed(x: Tensor, y: Tensor, eps: float, gain: NormGain, tokens: slice, fuse: bool) -> None:
    """Add RMSNorm(y) times `gain` to the slice `tokens` of x (T, D) float32, in place; y (tokens, D)."""
    if fuse:
        fused.compiled(fused.add)(x[tokens], y, gain.of(tokens), eps)
        return
    for chunk in chunks(y, 4 * x.shape[1], ELEMENTWISE_CHUNK_BYTES, tokens.start):
        wide = y[chunk.start - tokens.start : chunk.stop - tokens.start].float()
        x[chunk].addcmul_(wide * inverse_rms(wide, eps), gain.of(chunk))


def norm_and_rotate(
    x: Tensor, norm: RMSNorm, factor: float, rotations: Tensor, out: Tensor, fuse: bool
) -> None:
    """Write x, normalized, rotated and times `factor`, to `out`.

    x           (T, h, d)     queries or keys of the linear layer
    rotations   (T, 1, d/2)   complex64
    out         (h, T, d)
    """
    if fuse:
        weight = norm.weight.float() * factor
        fused.compiled(fused.rotate)(x, weight, torch.view_as_real(rotations), norm.eps, out)
        return
    for chunk in chunks(x, 4 * x.shape[1] * x.shape[2], ELEMENTWISE_CHUNK_BYTES):
        wide = x[chunk].float()
        wide = (wide * inverse_rms(wide, norm.eps)).mul_(norm.weight.float() * factor)
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(rotations[chunk])
        out[:, chunk] = torch.view_as_real(pairs).flatten(-2).transpose(0, 1)


def qkv_of(
    attention: Attention, x: Tensor, gain: NormGain, eps: float, layout: PackedLayout, scratch: Scratch
) -> list[Tensor]:
    """Return queries (h, T, d), keys and values (g, T, d) of x (T, D), in buffers of `scratch`.

    Queries and keys are normalized and rotated; queries are also scaled by 1 / sqrt(d).
    """
    weight, d = attention.q_norm.weight, attention.head_dim
    h, g = (width // d for width in attention.widths[:2])
    q, k, v = (
        scratch.take(name, (heads, len(x), d), weight) for name, heads in (("q", h), ("k", g), ("v", g))
    )
    for span in chunks(x, sum(attention.widths) * weight.element_size(), LINEAR_CHUNK_BYTES):
        z = normed(x, eps, gain, span, weight.dtype, scratch.fused)
        qkv = attention.qkv(z).unflatten(-1, (-1, d))
        rotations = layout.rotations[span]
        norm_and_rotate(qkv[:, :h], attention.q_norm, d**-0.5, rotations, q[:, span], scratch.fused)
        norm_and_rotate(qkv[:, h : h + g], attention.k_norm, 1.0, rotations, k[:, span], scratch.fused)
        v[:, span] = qkv[:, h + g :].transpose(0, 1)
    return [q, k, v]


def attention_output(
    attention: Attention,
    x: Tensor,
    gain: NormGain,
    eps: float,
    layout: PackedLayout,
    scratch: Scratch,
    last: bool,
) -> Tensor:
    """Return attention over x (T, D) before the output projection: (T, h d); only image tokens if `last`."""
    q, k, v = qkv_of(attention, x, gain, eps, layout, scratch)
    if scratch.kernel in VARIABLE:
        ends = layout.ends
        if last:
            q = torch.cat([q[:, image] for image in layout.images], dim=1)
            ends = list(accumulate((image.stop - image.start for image in layout.images), initial=0))
        y = attend_packed(scratch.kernel, *(heads.transpose(0, 1) for heads in (q, k, v)), ends, layout.ends)
        return y.flatten(1)
    queries = sum(image.stop - image.start for image in layout.images) if last else len(x)
    y, done = scratch.take("y", (queries, len(q), attention.head_dim), attention.q_norm.weight), 0
    for start, entries, length, text in layout.equal_shapes():  # one attention call for each run
        run = slice(start, start + entries * length)
        own = [heads[:, run].unflatten(1, (entries, length)).transpose(0, 1) for heads in (q, k, v)]
        if last:
            own[0] = own[0][:, :, text:]
        count = entries * own[0].shape[2]
        attend(*own, 1.0, y[done : done + count].unflatten(0, (entries, -1)), scratch.kernel)
        done += count
    return y.flatten(1)


def run_block(
    block: Block, x: Tensor, layout: PackedLayout, c: Tensor | None, scratch: Scratch, last: bool = False
) -> Tensor:
    """Run a block in place.

    x       (T, D)      float32, overwritten
    c       (1 or B, A) time embedding; None for an unmodulated block
    last    return only the image tokens of all entries, in a tensor of their own
    returns (T, D)
    """
    attention, feed_forward, eps = block.attention, block.feed_forward, block.attention_norm1.eps
    scale_a, gate_a, scale_f, gate_f = modulation(block, c)
    lengths = [entry.stop - entry.start for entry in layout.entries]
    gain = NormGain(block.attention_norm1.weight, scale_a, lengths)
    y = attention_output(attention, x, gain, eps, layout, scratch, last)
    if last:
        x = torch.cat([x[image] for image in layout.images])
        lengths = [image.stop - image.start for image in layout.images]
    after_a = NormGain(block.attention_norm2.weight, gate_a, lengths)
    before_f = NormGain(block.ffn_norm1.weight, scale_f, lengths)
    after_f = NormGain(block.ffn_norm2.weight, gate_f, lengths)
    for span in chunks(x, feed_forward.width * y.element_size(), LINEAR_CHUNK_BYTES):
        add_normed(x, attention.out(y[span]), eps, after_a, span, scratch.fused)
        z = normed(x, eps, before_f, span, y.dtype, scratch.fused)
        z = feed_forward.w2(gated(feed_forward.w1(z), feed_forward.w3(z), scratch.fused))
        add_normed(x, z, eps, after_f, span, scratch.fused)
    return x


def gated(x: Tensor, y: Tensor, fuse: bool) -> Tensor:
    """Return silu(x) y; overwrites x unless `fuse`."""
    return fused.compiled(fused.gate)(x, y) if fuse else F.silu(x, inplace=True).mul_(y)


def modulation(block: Block, c: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return 1 + scale and tanh(gate) of attention, then of feed-forward: (1 or B, D) float32, or None."""
    if c is None:
        return None, None, None, None
    scale_a, gate_a, scale_f, gate_f = block.adaLN_modulation(c).float().chunk(4, dim=-1)
    return 1 + scale_a, gate_a.tanh(), 1 + scale_f, gate_f.tanh()


def packed_final_layer(layer: FinalLayer, x: Tensor, layout: PackedLayout, c: Tensor) -> Tensor:
    """Run the final layer on image tokens: (T, D) -> (T, p*p*C)."""
    scale = 1 + layer.adaLN_modulation(c).float()
    gain = NormGain(torch.ones_like(scale[0]), scale, [entry.stop - entry.start for entry in layout.entries])
    out = torch.empty(x.shape, dtype=layer.linear.weight.dtype, device=x.device)
    for chunk in chunks(x, 4 * x.shape[1], ELEMENTWISE_CHUNK_BYTES):
        out[chunk] = F.layer_norm(x[chunk].float(), x.shape[-1:], eps=1e-6) * gain.of(chunk)
    return layer.linear(out)

"""Grouped-query attention over a joint sequence of text and image tokens.

B batch entries, h query heads, g key-value heads (h is a multiple of g), L tokens, d head width. All
implementations have this signature:

    q          (B, h, L, d)
    k, v       (B, g, L, d)     query head i uses key-value head i // (h / g)
    key_mask   (B, L) or None   True for real keys; every entry has at least one
    returns    (B, h, L, d)     in the dtype of q

Source: grouped-query attention (arXiv 2305.13245).
"""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from lumina_cli.core.kernels import Implementation, Inputs, Op

BLOCK = 512  # queries and keys per block: the scores stay in a processor's cache
SCORES = 2**22  # bytes of bfloat16 scores at a time in `direct`: fits the cache, and occupies all cores
LARGEST = 16.0  # up to here bfloat16 represents a score to 1/32, and sums of its exp do not overflow
SHAPES = {"nano": (8, 4, 2, 88, 48), "lumina-image-2": (1, 24, 8, 4352, 96)}


def inputs(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    padding: int = 0,
) -> Inputs:
    """Return standard normal (q, k, v, key_mask) for shape (B, h, g, L, d), the same on every device.

    padding   number of last keys that are masked in every other entry, starting with the first; 0: no mask
    """
    B, h, g, L, d = shape
    random = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(B, heads, L, d, generator=random).to(device, dtype)  # drawn on the CPU
        for heads in (h, g, g)
    )
    if not padding:
        return q, k, v, None
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[::2, L - padding :] = False
    return q, k, v, mask.to(device)


def reference(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Compute attention in float64, one head of one entry at a time to limit memory."""
    group = q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        mask = None if key_mask is None else key_mask[b : b + 1]
        for i in range(q.shape[1]):
            head = slice(i // group, i // group + 1)
            part = (q[b : b + 1, i : i + 1], k[b : b + 1, head], v[b : b + 1, head])
            out[b, i] = naive(*(x.double() for x in part), mask)[0, 0]
    return out


def naive(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v with the full matrix of scores (arXiv 1706.03762)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, h, L, L)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    return scores.softmax(dim=-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Call torch's scaled_dot_product_attention, which chooses a backend."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, kernel: str = "auto") -> None:
    """Write attention with scores q k^T * scale to `out`, by the fastest implementation without gradients.

    q        (B, h, L, d)
    k, v     (B, g, keys, d)   all keys are real
    scale    of the scores
    out      (B, L, h, d)
    kernel   "sdpa" cannot be combined with `direct`, which is used for bfloat16 on a CPU
    """
    if v.device.type == "cpu" and v.dtype == torch.bfloat16 and kernel != "sdpa":
        direct_into(out, q if scale == 1 else q * scale, k, v)
    else:
        out.copy_(grouped(q, k, v, scale=scale).transpose(1, 2))


def grouped(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Call torch's attention on the concatenated query heads of each key-value head, without copies of k, v.

    The network uses it with gradients. It returns the dtype of v; q and k may have a wider one. On a CPU it
    computes in float32, since the backward pass of torch's bfloat16 kernel takes three times as long.
    """
    g, mask = k.shape[1], None if key_mask is None else key_mask[:, None, None, :]
    rows = q.unflatten(1, (g, -1))  # (B, g, h/g, L, d)
    if v.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            flat, keys, values = rows.flatten(2, 3).float(), k.float(), v.float()
            y = F.scaled_dot_product_attention(flat, keys, values, attn_mask=mask, scale=scale)
    else:
        flat, keys = rows.flatten(2, 3).to(v.dtype), k.to(v.dtype)
        y = F.scaled_dot_product_attention(flat, keys, v, attn_mask=mask, scale=scale)
    return y.to(v.dtype).unflatten(2, rows.shape[2:4]).flatten(1, 2)


def blockwise(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """Iterate over blocks of keys with an online softmax, in plain matmuls (arXiv 2205.14135).

    The query heads of one key-value head share its matmuls. Scores, maximum and sum are at least float32.
    """
    _, h, L, d = q.shape
    g, precise = k.shape[1], torch.promote_types(q.dtype, torch.float32)
    q = (q * d**-0.5).unflatten(1, (g, h // g))  # (B, g, h/g, L, d)
    out = torch.empty_like(q)
    for start in range(0, L, block):
        rows = q[:, :, :, start : start + block]
        flat = rows.flatten(2, 3)  # (B, g, R, d) with R the queries of the block in all heads of the group
        top = flat.new_full((*flat.shape[:3], 1), -torch.inf, dtype=precise)
        total, mixed = torch.zeros_like(top), torch.zeros_like(flat, dtype=precise)
        for key in range(0, L, block):
            scores = (flat @ k[:, :, key : key + block].transpose(-1, -2)).to(precise)  # (B, g, R, block)
            if key_mask is not None:
                scores.masked_fill_(~key_mask[:, None, None, key : key + block], -torch.inf)
            higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            safe = higher.masked_fill(higher == -torch.inf, 0)  # avoids inf - inf while all keys are masked
            weights = scores.sub_(safe).exp_()
            fade = (top - safe).exp_()
            total = total * fade + weights.sum(dim=-1, keepdim=True)
            mixed = mixed * fade + weights.to(v.dtype) @ v[:, :, key : key + block]
            top = higher
        out[:, :, :, start : start + block] = (mixed / total).to(q.dtype).view_as(rows)
    return out.flatten(1, 2)


def direct(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Score blocks of queries against all keys in bfloat16, without subtracting the maximum; for CPUs.

    If a bound on the scores shows that this could overflow, they are float32 and the maximum is subtracted.
    """
    out = v.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    direct_into(out, (q.float() * q.shape[-1] ** -0.5).to(v.dtype), k, v)
    return out.transpose(1, 2)


def direct_into(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Compute `direct` for scaled queries; write to `out` (B, L, h, d)."""
    h, g, L, keys = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    fits = max(1, SCORES // (2 * keys))
    memory = v.new_empty(min(fits, h * L) * keys)  # allocated once: new pages cost more than exp on them
    for entry, q_one, k_one, v_one in zip(out, q.unflatten(1, (g, h // g)), k, v, strict=True):
        target = entry.transpose(0, 1).unflatten(0, (g, h // g))  # (g, h/g, L, d)
        sizes = [torch.linalg.vector_norm(x, dim=-1).flatten(1).amax(1).float() for x in (q_one, k_one)]
        bound = (sizes[0] * sizes[1]).tolist()
        for groups, heads, tokens in _blocks(g, h // g, L, fits):
            rows = q_one[groups, heads, tokens]
            flat, key = rows.flatten(1, 2), k_one[groups].transpose(1, 2)
            weights = memory[: flat.shape[0] * flat.shape[1] * keys].view(*flat.shape[:2], keys)
            if max(bound[groups]) <= LARGEST:
                total = _total(torch.bmm(flat, key, out=weights).exp_())
            else:
                scores = torch.bmm(flat.float(), key.float())
                scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
                total = weights.copy_(scores).sum(dim=-1, keepdim=True, dtype=torch.float32)
            mixed = torch.bmm(weights, v_one[groups]) / total
            target[groups, heads, tokens] = mixed.view(rows.shape)


def _total(weights: Tensor) -> Tensor:
    """Sum weights (n, R, keys) over the keys; returns (n, R, 1) float32.

    Groups of 128 are summed in the dtype of the weights: a float32 sum would first copy all weights to
    float32, which takes five times as long.
    """
    cut = weights.shape[-1] // 128 * 128
    parts = weights[..., :cut].unflatten(-1, (-1, 128)).sum(dim=-1)
    rest = weights[..., cut:].sum(dim=-1, keepdim=True)
    return parts.sum(dim=-1, keepdim=True, dtype=torch.float32) + rest


def _blocks(groups: int, heads: int, tokens: int, fits: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield blocks of about `fits` queries, as slices of groups, heads and tokens."""
    if heads * tokens <= fits:
        for group in range(0, groups, step := fits // (heads * tokens)):
            yield slice(group, group + step), slice(None), slice(None)
        return
    for group in range(groups):
        for head in range(heads):
            for start in range(0, tokens, fits):
                yield slice(group, group + 1), slice(head, head + 1), slice(start, start + fits)


def direct_missing(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> str | None:
    """Return why `direct` cannot run on these inputs, or None."""
    if q.device.type != "cpu":
        return "direct runs on CPUs only"
    if key_mask is not None:
        return "direct does not support padding; it needs packed batches"
    return None if q.dtype == torch.bfloat16 else "direct needs --dtype bfloat16"


def flash(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Call the flash-attn package, without padding."""
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flash_missing(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> str | None:
    """Return why `flash` cannot run on these inputs, or None."""
    if q.device.type != "cuda" or find_spec("flash_attn") is None:
        found = "the package flash_attn is not installed"
        if q.device.type != "cuda":
            found = "this machine has no CUDA device"
            if torch.cuda.is_available():
                found = f"the network is on {q.device}"
        fix = "`pip install 'lumina-cli[flash]'`"
        return f"flash needs a CUDA device and {fix}; {found}"
    if key_mask is not None:
        return "flash does not support padding; varlen does"
    return _needs_half("flash", q)


def varlen(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Call torch's variable-length attention on the real keys of all entries, packed into one sequence."""
    from torch.nn.attention.varlen import varlen_attn

    B, h, L, _ = q.shape
    real = q.new_ones((B, L), dtype=torch.bool) if key_mask is None else key_mask
    lengths = real.sum(dim=1)
    key_ends = F.pad(lengths.cumsum(0), (1, 0)).int()
    query_ends = torch.arange(0, (B + 1) * L, L, device=q.device, dtype=torch.int32)
    keys, values = (x.transpose(1, 2)[real] for x in (k, v))  # (real keys, g, d)
    queries = q.transpose(1, 2).flatten(0, 1)
    longest = int(lengths.max())
    out = varlen_attn(queries, keys, values, query_ends, key_ends, L, longest, enable_gqa=h != k.shape[1])
    return out.unflatten(0, (B, L)).transpose(1, 2)


def varlen_missing(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> str | None:
    """Return why `varlen` cannot run on these inputs, or None."""
    if find_spec("torch.nn.attention.varlen") is None:
        return f"varlen needs torch.nn.attention.varlen; torch {torch.__version__} has none"
    if q.device.type != "cuda":
        found = "in use" if torch.cuda.is_available() else "available"
        return f"varlen needs a CUDA device; none is {found}"
    return _needs_half("varlen", q)


def _needs_half(name: str, q: Tensor) -> str | None:
    if q.dtype in (torch.float16, torch.bfloat16):
        return None
    return f"{name} needs --dtype bfloat16 or float16, not {str(q.dtype).removeprefix('torch.')}"


OP = Op(
    name="attention",
    reference=reference,
    inputs=inputs,
    implementations={
        "naive": Implementation(naive),
        "sdpa": Implementation(sdpa),
        "grouped": Implementation(grouped),
        "blockwise": Implementation(blockwise),
        "direct": Implementation(direct, direct_missing),
        "flash": Implementation(flash, flash_missing),
        "varlen": Implementation(varlen, varlen_missing),
    },
    shapes=SHAPES,
    baseline="sdpa",
)

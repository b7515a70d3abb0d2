"""The layers of Next-DiT, from tensors to tensors, so that each block compiles on its own.

B batch entries, L tokens, D width, h heads, g key-value heads, d head width, A width of the time embedding,
p patch side, C channels. Source: Lumina-Image 2.0, "Unified Next-DiT".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumina_cli.core.kernels.attention import grouped as attend
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.rope import rotate

QK_EPS = 1e-5
TIME_WAVES = 256


class RMSNorm(nn.Module):
    """x / RMS(x) * weight over the last axis, with the statistics in float32 for any dtype of x."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention over one sequence, with QK-norm and rotary positions."""

    def __init__(self, config: NextDiTConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.widths = [config.dim, *[config.num_kv_heads * config.head_dim] * 2]
        self.qkv = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, QK_EPS)
        self.k_norm = RMSNorm(config.head_dim, QK_EPS)

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend from all tokens to all real tokens.

        x          (B, L, D)
        mask       (B, L), True for real keys; None if all are real
        cos, sin   (B or 1, L, d/2)
        returns    (B, L, D)
        """
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q, k, v = (heads.unflatten(-1, (-1, self.head_dim)) for heads in (q, k, v))  # (B, L, h or g, d)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): w2(silu(w1 x) * w3 x), with the official parameter names."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.width = hidden_dim
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward with sandwich norms; if `modulated`, scaled and gated by the time (adaLN).

    x <- x + tanh(gate_a) * norm2(attention(norm1(x) * (1 + scale_a)))
    x <- x + tanh(gate_f) * norm2(feed_forward(norm1(x) * (1 + scale_f)))
    """

    def __init__(self, config: NextDiTConfig, modulated: bool):
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.attention = Attention(config)
        self.feed_forward = FeedForward(dim, config.hidden_dim)
        self.attention_norm1 = RMSNorm(dim, eps)
        self.attention_norm2 = RMSNorm(dim, eps)
        self.ffn_norm1 = RMSNorm(dim, eps)
        self.ffn_norm2 = RMSNorm(dim, eps)
        self.adaLN_modulation = (
            nn.Sequential(nn.SiLU(), nn.Linear(config.time_dim, 4 * dim)) if modulated else None
        )

    def forward(
        self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, c: Tensor | None = None
    ) -> Tensor:
        """Run the block.

        x                (B, L, D)
        mask, cos, sin   see `Attention`
        c                (B, A) time embedding; None for an unmodulated block
        returns          (B, L, D)
        """
        if self.adaLN_modulation is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), mask, cos, sin))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        # cast before adding 1: in bfloat16, which autocast returns, 1 + scale rounds most of the scale away
        scale_a, gate_a, scale_f, gate_f = self.adaLN_modulation(c).to(x.dtype).unsqueeze(1).chunk(4, dim=-1)
        y = self.attention(self.attention_norm1(x) * (1 + scale_a), mask, cos, sin)
        x = x + gate_a.tanh() * self.attention_norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_f))
        return x + gate_f.tanh() * self.ffn_norm2(y)


class TimeEmbedding(nn.Module):
    """Embedding of times in [0, 1]: sinusoids, then two linear layers."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WAVES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, A)."""
        return self.mlp(time_waves(t).to(self.mlp[0].weight.dtype))


def time_waves(t: Tensor) -> Tensor:
    """(B,) -> (B, 256) float32: cosines, then sines, of t at 128 frequencies from 1 down to about 1/10000."""
    half = TIME_WAVES // 2
    frequencies = torch.exp(
        -math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device)
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FinalLayer(nn.Module):
    """Projection of tokens to patches: layer norm, scaled by the time, then a linear layer."""

    def __init__(self, config: NextDiTConfig):
        super().__init__()
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_dim, config.dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, L, D) and c (B, A) -> (B, L, p*p*C)."""
        scale = 1 + self.adaLN_modulation(c).to(x.dtype).unsqueeze(1)
        return self.linear(F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * scale)

"""From noise to latents: the network, called as a velocity, under a plan."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.solvers import Velocity

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def draw_latents(
    model: Network,
    noise: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    null_text: Tensor,
    null_mask: Tensor | None,
    plan: Plan,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw a batch of latents, float32.

    B pictures, M text tokens, C channels, H W latent size, T text width.

        model      (latents, t (B,), text, text_mask) -> velocity; `NextDiT` or anything like it
        noise      (B, C, H, W)   the state at time 0
        text       (B, M, T)      features of the captions; the network sees latents of the same dtype
        text_mask  (B, M)         True where a token is real, real ones first; None: all are
        null_text  (B or 1, N, T) features of the empty caption, for guidance; N need not be M
        null_mask  (B or 1, N)
        on_step    called as on_step(steps done, latents) after every step

    The state stays float32 whatever the network computes in. While guidance runs, the rows with and without a
    caption share one call of 2B rows.
    """
    text_mask, null_mask = _mask(text, text_mask), _mask(null_text, null_mask)
    plain = _velocity(model, text, text_mask)
    paired = _velocity(model, *_stack(text, text_mask, null_text, null_mask))
    for done, latents in enumerate(plan.solve(plain, paired, noise.float()), start=1):
        if on_step is not None:
            on_step(done, latents)
    return latents


def _velocity(model: Network, text: Tensor, mask: Tensor) -> Velocity:
    """Bind the captions to the network: (x, t) -> float32 velocity."""

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return model(x.to(text.dtype), times, text, mask).float()

    return velocity


def _mask(text: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return mask.bool()


def _stack(text: Tensor, mask: Tensor, null_text: Tensor, null_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put the null rows under the captioned ones, padded to the longer of the two: (2B, L, T), (2B, L)."""
    rows, longest = len(text), max(text.shape[1], null_text.shape[1])
    null_text = null_text.to(text).expand(rows, -1, -1)
    null_mask = null_mask.expand(rows, -1)
    texts = [pad(features, (0, 0, 0, longest - features.shape[1])) for features in (text, null_text)]
    masks = [pad(real, (0, longest - real.shape[1])) for real in (mask, null_mask)]
    return torch.cat(texts), torch.cat(masks)

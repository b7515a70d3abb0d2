"""From noise to latents: the network, called as a velocity, under a plan."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.solvers import Velocity
from lumina_cli.core.nextdit.sequence import EncodedText
from lumina_cli.core.sampling.teacache.layer_cache import LayerCache, Through

Network = Callable[..., Tensor]


class NonFiniteLatents(LuminaError):
    """NaN or infinity came out of call number `call` (from 1), at time `t`, in row `row` of the batch."""

    def __init__(self, call: int, t: float, row: int):
        super().__init__(f"NaN or infinity in call {call}, t {t:.4f}, picture {row + 1}")
        self.call, self.t, self.row = call, t, row


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
    cache: LayerCache | None = None,
) -> Tensor:
    """Integrate the flow from noise to latents, float32.

    B images, M text tokens, C channels, H W latent size, T text width.

        model      a `NextDiT`, or any callable (latents, t, text, text_mask) -> velocity; if it has
                   an `encode_text`, captions are encoded once, not once per step
        noise      (B, C, H, W)   standard normal noise: the state at time 0
        text       (B, M, T)      features of the captions; the network gets latents of the same dtype
        text_mask  (B, M)         True where a token is real; real tokens come first; None: all are real
        null_text  (B or 1, N, T)   features of the empty caption, for guidance; N may differ from M
        null_mask  (B or 1, N)   mask of null_text
        on_step    called as on_step(steps done, latents) after each step
        cache      the layer cache of `plan.cache`, if it needs a fit; afterwards it can report
        returns    (B, C, H, W)   the state at time 1

    The state stays float32, whatever dtype the network computes in. While guidance runs, both guidance
    branches share one call of 2B batch entries.

    Raises:
        NonFiniteLatents: at the first call that produces NaN or infinity.
    """
    if plan.cache is not None:
        model = Through(model, (cache or LayerCache(plan)).start(len(noise)))
    text_mask, null_mask = _mask(text, text_mask), _mask(null_text, null_mask)
    null_text = null_text.to(text)
    encode = getattr(model, "encode_text", None)
    if encode is None:
        captions = text, text_mask
        pairs = _stack(text, null_text), _stack(text_mask, null_mask)
    else:
        captions = (encode(text, text_mask),)
        pairs = (_stack_encoded(*captions, encode(null_text, null_mask)),)
    call = CallCounter(model, len(noise))
    plain = _velocity(call, text.dtype, *captions)
    paired = _velocity(call, text.dtype, *pairs, copies=1 if encode is None else 2)
    for done, latents in enumerate(plan.solve(plain, paired, noise.float()), start=1):
        if on_step is not None:
            on_step(done, latents)
    call.check(latents)  # the last velocity may have been a number, and what guidance made of it none
    return latents


class CallCounter:
    """A network whose calls are counted and looked at; its rows are those of `pictures`, once or twice."""

    def __init__(self, model: Network, pictures: int):
        self.model, self.pictures = model, pictures
        self.made, self.t = 0, 0.0

    def __call__(self, x: Tensor, t: Tensor, *captions: Tensor | EncodedText) -> Tensor:
        """Call the network; NotNumbers where its velocity is none."""
        velocity = self.model(x, t, *captions)
        self.made, self.t = self.made + 1, float(t[0])
        self.check(velocity)
        return velocity

    def check(self, x: Tensor) -> None:
        """Raise NotNumbers where a row of x (B, ...) has NaN or infinity."""
        broken = ~torch.isfinite(x).flatten(1).all(1)
        if broken.any():
            raise NonFiniteLatents(self.made, self.t, int(broken.nonzero()[0]) % self.pictures)


def _velocity(
    model: Network, dtype: torch.dtype, *captions: Tensor | EncodedText, copies: int = 1
) -> Velocity:
    """Bind the captions, encoded or with their mask, to the network: (x, t) -> float32 velocity.

    With encoded captions the rows of `x` may come `copies` times over; the network sees them once.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        x = x[: len(x) // copies]
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return model(x.to(dtype), times, *captions).float()

    return velocity


def _mask(text: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return mask.bool()


def _stack(own: Tensor, null: Tensor) -> Tensor:
    """Put the null rows (B or 1, N, ...) under the captioned ones (B, M, ...), zeros up to the longer."""
    longest = max(own.shape[1], null.shape[1])
    parts = own, null.expand(len(own), *null.shape[1:])
    return torch.cat([pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts])


def _stack_encoded(own: EncodedText, null: EncodedText) -> EncodedText:
    """The same for captions that the network has encoded."""
    lengths = own.lengths + null.lengths * (len(own.lengths) // len(null.lengths))
    return EncodedText(_stack(own.features, null.features), lengths)

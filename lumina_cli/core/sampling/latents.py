"""Sampling of latents: a plan integrates the velocity that the network predicts, from noise to data."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.solvers import Velocity
from lumina_cli.core.nextdit.sequence import EncodedText
from lumina_cli.core.sampling.teacache.layer_cache import InterceptedNetwork, LayerCache

Network = Callable[..., Tensor]


class NonFiniteLatents(LuminaError):
    """NaN or infinity in a call of the network.

    call   number of the call, from 1
    t      its time
    entry  index of the image in the batch
    """

    def __init__(self, call: int, t: float, entry: int):
        super().__init__(f"NaN or infinity in call {call}, t {t:.4f}, image {entry + 1}")
        self.call, self.t, self.entry = call, t, entry

    def describe(self, prompt: str, seed: int, plan: Plan) -> str:
        """Return one line that names the image and the call of the plan."""
        calls = plan.calls()
        step = calls[self.call - 1].step + 1
        return (
            f"NaN or infinity in the latents of {prompt[:40]!r}, seed {seed}, at call {self.call} of "
            f"{len(calls)} (step {step}, t {self.t:.4f}); the weights are damaged, or the guidance is too "
            "strong"
        )


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
    """Sample latents: integrate the flow from noise, at time 0, to data, at time 1.

    B images, C channels, H W latent size, T text width, M tokens of the captions, N tokens of the negative or
    empty prompts.

        model      a `NextDiT`, or any callable (latents, t, text, text_mask) -> velocity; if it has a method
                   `encode_text`, captions are encoded once, not once per step
        noise      (B, C, H, W)     standard normal noise: the state at time 0
        text       (B, M, T)        features of the captions; latents are passed to the network in this dtype
        text_mask  (B, M)           True for real tokens, which precede padding; None: all are real
        null_text  (B or 1, N, T)   features of the negative or empty prompts, for guidance
        null_mask  (B or 1, N)      mask of null_text
        plan       solver, times, guidance and cache
        on_step    called as on_step(steps done, latents) after each step
        cache      the layer cache of `plan`, required if it needs a calibration; `cache.report` describes the
                   batch
        returns    (B, C, H, W)     the state at time 1, float32

    The state is float32 regardless of the dtype of the network. With guidance, both guidance branches share
    one call of 2B batch entries.

    Raises:
        NonFiniteLatents: at the first call that produces NaN or infinity.
    """
    if plan.cache is not None:
        model = InterceptedNetwork(model, (cache or LayerCache(plan)).reset(len(noise)))
    text_mask, null_mask = _mask(text, text_mask), _mask(null_text, null_mask)
    null_text = null_text.to(text)
    encode = getattr(model, "encode_text", None)
    if encode is None:
        captions: tuple = (text, text_mask)
        pairs: tuple = _stack(text, null_text), _stack(text_mask, null_mask)
    else:
        captions = (encode(text, text_mask),)
        pairs = (_stack_encoded(*captions, encode(null_text, null_mask)),)
    call = CallCounter(model, len(noise))
    plain = _velocity(call, text.dtype, *captions)
    paired = _velocity(call, text.dtype, *pairs, copies=1 if encode is None else 2)
    for done, latents in enumerate(plan.solve(plain, paired, noise.float()), start=1):
        if on_step is not None:
            on_step(done, latents)
    call.check(latents)  # guidance can overflow on the finite velocities of the last call
    return latents


class CallCounter:
    """A network that counts its calls and checks their output; a call has the `images` once or twice."""

    def __init__(self, model: Network, images: int):
        self.model, self.images = model, images
        self.made, self.t = 0, 0.0

    def __call__(self, x: Tensor, t: Tensor, *captions: Tensor | EncodedText) -> Tensor:
        """Call the network.

        Raises:
            NonFiniteLatents: if the velocity contains NaN or infinity.
        """
        velocity = self.model(x, t, *captions)
        self.made, self.t = self.made + 1, float(t[0])
        self.check(velocity)
        return velocity

    def check(self, x: Tensor) -> None:
        """Check that x (B, ...) is finite.

        Raises:
            NonFiniteLatents: for the first batch entry that contains NaN or infinity.
        """
        broken = ~torch.isfinite(x).flatten(1).all(1)
        if broken.any():
            raise NonFiniteLatents(self.made, self.t, int(broken.nonzero()[0]) % self.images)


def _velocity(
    model: Network, dtype: torch.dtype, *captions: Tensor | EncodedText, copies: int = 1
) -> Velocity:
    """Bind captions (encoded, or features with a mask) to the network: (x, t) -> float32 velocity.

    A solver passes each image once per guidance branch, `copies` in all. With encoded captions the network
    takes the images once and computes all branches from them.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        x = x[: len(x) // copies]
        times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        return model(x.to(dtype), times, *captions).float()

    return velocity


def _mask(text: Tensor, mask: Tensor | None) -> Tensor:
    """A boolean mask (B, M); all True if there is none."""
    if mask is None:
        return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return mask.bool()


def _stack(own: Tensor, null: Tensor) -> Tensor:
    """Concatenate captions (B, M, ...) and null captions (B or 1, N, ...), zero-padded to the longer."""
    longest = max(own.shape[1], null.shape[1])
    parts = own, null.expand(len(own), *null.shape[1:])
    return torch.cat([pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts])


def _stack_encoded(own: EncodedText, null: EncodedText) -> EncodedText:
    """`_stack` for captions that the network has encoded."""
    lengths = own.lengths + null.lengths * (len(own.lengths) // len(null.lengths))
    return EncodedText(_stack(own.features, null.features), lengths)

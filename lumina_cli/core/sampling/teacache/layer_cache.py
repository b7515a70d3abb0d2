"""The layer cache: runs the main layers of a call only for the images that need it.

B images, N image tokens, D width. The batch entries of a call are [with captions..., without captions...].
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lumina_cli.core.flow import Plan
from lumina_cli.core.sampling.teacache.fit import CacheFit, read_cache_fit
from lumina_cli.core.sampling.teacache.kinds import choose_policy, needs_fit
from lumina_cli.core.sampling.teacache.policy import (
    BranchState,
    FirstBlockCache,
    GenerationState,
    should_run,
)


class LayerStackLike(Protocol):
    """The main layers of one call, which the network passes instead of running them; see `LayerStack`."""

    entries: int
    image: Callable[[int], Tensor]
    signal: Callable[[int], Tensor]
    first: Callable[[list[int]], list[Tensor]]
    run: Callable[[list[int]], list[Tensor]]


RunLayers = Callable[[LayerStackLike], list[Tensor]]


class InterceptedNetwork:
    """A network whose main layers are run by `run_layers`; see `NextDiT.velocity_packed`."""

    def __init__(self, model: Callable[..., Tensor], run_layers: RunLayers):
        self.model, self.run_layers, self.encode_text = model, run_layers, model.encode_text

    def __call__(self, *inputs) -> Tensor:
        """Call the network."""
        return self.model.velocity_packed(*inputs, run_layers=self.run_layers)


class LayerCache:
    """Runs the main layers for one batch, as `run_layers` of an `InterceptedNetwork`.

    The policy is that of `plan.cache`; "tea" and "error" need the `fit` of the model. Each image decides
    independently of the others.

    Raises:
        LuminaError: if the policy needs a fit and there is none.
    """

    def __init__(self, plan: Plan, fit: CacheFit | None = None):
        self.plan, (self.policy, self.measurement) = plan, choose_policy(plan, fit)
        self.states: list[GenerationState] = []

    def reset(self, images: int) -> "LayerCache":
        """Start a batch of `images`; return self."""
        total = len(self.plan.calls())
        self.states = [GenerationState(total) for _ in range(images)]
        return self

    def __call__(self, stack: LayerStackLike) -> list[Tensor]:
        """Return the image tokens (N, D) of each batch entry after the main layers, computed or cached."""
        count = len(self.states)
        inputs = [stack.image(entry) for entry in range(stack.entries)]
        signals = self._signals(stack, inputs)
        running = [
            number
            for number, state in enumerate(self.states)
            if should_run(self.policy, state, signals[number::count])  # the entries of all its branches
        ]
        entries = [entry for entry in range(stack.entries) if entry % count in running]
        outputs = dict(zip(entries, stack.run(entries), strict=True))
        branches = [self.states[entry % count].branches[entry // count] for entry in range(stack.entries)]
        for entry, output in outputs.items():
            branches[entry].residual = output - inputs[entry]
        return [
            outputs[entry] if entry in outputs else tokens + branches[entry].residual
            for entry, tokens in enumerate(inputs)
        ]

    def _signals(self, stack: LayerStackLike, inputs: list[Tensor]) -> list[Tensor]:
        """The tensor of each batch entry that the policy compares between calls."""
        entries = list(range(stack.entries))
        if isinstance(self.policy, FirstBlockCache):
            return [output - tokens for output, tokens in zip(stack.first(entries), inputs, strict=True)]
        return [stack.signal(entry) for entry in entries]

    def release(self) -> None:
        """Free all tensors; the counts for `report` stay."""
        for state in self.states:
            state.branches = (BranchState(), BranchState())

    def report(self, image: int | None = None) -> dict:
        """Return the counts of one image, or the sums over all.

        "rows" are batch entries over all calls, "skipped" those that reused a residual, "threshold" the one
        in use; for an error budget, "measured" names the plan under which its error was measured.
        """
        chosen = self.states if image is None else [self.states[image]]
        counts = {"cache": self.plan.cache, "threshold": self.policy.threshold}
        counts |= {"rows": sum(one.entries for one in chosen), "skipped": sum(one.skipped for one in chosen)}
        if self.measurement:
            counts["measured"] = f"{self.measurement.solver}, {self.measurement.calls} calls"
        return counts


def cache_for(plan: Plan, folder: Path, weights: str, earlier: Collection[str] = ()) -> LayerCache | None:
    """Return the cache of a plan, with the fit in the model folder if it needs one; None without a cache.

    `weights` and `earlier` are the fingerprints that the fit may name.

    Raises:
        LuminaError: if the fit is missing, damaged or was made for other weights.
    """
    if plan.cache is None:
        return None
    return LayerCache(plan, read_cache_fit(folder, weights, earlier) if needs_fit(plan) else None)

"""Hot operations: each one reference, several implementations, and the inputs to compare them on."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Inputs = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation; `missing(*inputs)` says why it cannot run here, or None."""

    run: Callable[..., Tensor]
    missing: Callable[..., str | None] = lambda *inputs: None


@dataclass(frozen=True)
class Op:
    """An operation: its `reference` in float64, its `inputs` by shape, its implementations by name."""

    name: str
    reference: Callable[..., Tensor]
    inputs: Callable[..., Inputs]
    implementations: dict[str, Implementation]
    shapes: dict[str, tuple[int, ...]]
    baseline: str

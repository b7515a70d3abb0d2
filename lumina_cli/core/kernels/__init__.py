"""Performance-critical operations: a reference, several implementations, and inputs to compare them on.

A new kernel belongs here if it has a float64 reference and alternative implementations: it is an `Op`,
registered in KERNELS. Elementwise formulas that `torch.compile` fuses for the transformer blocks are in
`core/nextdit/packed/fused.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Inputs = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    run       the function
    missing   called with the inputs of `run`: why it cannot run on them here, or None
    """

    run: Callable[..., Tensor]
    missing: Callable[..., str | None] = lambda *inputs: None


@dataclass(frozen=True)
class Op:
    """An operation: an entry of KERNELS.

    name              of the operation
    reference         computes it in float64
    inputs            shape -> arguments of all implementations
    implementations   by name
    shapes            shapes to measure, by name
    baseline          the implementation that others are compared with
    """

    name: str
    reference: Callable[..., Tensor]
    inputs: Callable[..., Inputs]
    implementations: dict[str, Implementation]
    shapes: dict[str, tuple[int, ...]]
    baseline: str

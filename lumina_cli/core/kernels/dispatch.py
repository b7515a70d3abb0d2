"""Choose the attention of the packed forward pass, and call it on batch entries of different lengths."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels.attention import OP
from lumina_cli.core.registry import did_you_mean

CHOICES = ("auto", "flash", "varlen", "sdpa", "direct")
ORDER = {"cuda": ("flash", "varlen", "sdpa"), "cpu": ("direct", "sdpa")}  # the fastest first
VARIABLE = ("flash", "varlen")  # accept entries of different lengths in one call


def check_choice(name: str) -> None:
    """Check that `name` is one of CHOICES.

    Raises:
        UsageError: if it is not.
    """
    if name not in CHOICES:
        hint = did_you_mean(name, CHOICES) or f"; choose from {', '.join(CHOICES)}"
        raise UsageError(f"unknown kernel {name!r}{hint}")


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the attention to use on `device` in `dtype`: `name` itself, or for "auto" the fastest that runs.

    Raises:
        UsageError: if `name` is not one of CHOICES.
        MissingDependency: if it cannot run here; the message states what is missing.
    """
    check_choice(name)
    if name == "auto":
        return _fastest(device, dtype)
    if reason := _missing(name, device, dtype):
        raise MissingDependency(f"--kernel {reason}")
    return name


@cache
def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    """Return the first of ORDER that runs; cached, since every network call needs it."""
    return next(one for one in ORDER.get(device.type, ("sdpa",)) if not _missing(one, device, dtype))


def _missing(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why an attention cannot run on `device` in `dtype`, or None."""
    probe = (torch.empty(1, 1, 1, 8, dtype=dtype, device=device),) * 3
    return OP.implementations[name].missing(*probe)


def attend_packed(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, query_ends: Sequence[int], key_ends: Sequence[int]
) -> Tensor:
    """Compute the attention of all batch entries in one call of a kernel in VARIABLE.

    q           (queries, h, d)   scaled; entry i has queries query_ends[i] to query_ends[i + 1]
    k, v        (keys, g, d)      entry i has keys key_ends[i] to key_ends[i + 1]
    returns     (queries, h, d)
    """
    ends = [torch.tensor(ends, dtype=torch.int32, device=q.device) for ends in (query_ends, key_ends)]
    longest = [max(b - a for a, b in pairwise(ends)) for ends in (query_ends, key_ends)]
    if kernel == "flash":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *ends, *longest, softmax_scale=1.0)
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, *ends, *longest, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])

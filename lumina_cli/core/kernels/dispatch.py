"""Which attention the packed path of a network calls, and how all its rows go through one call of it."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels.attention import OP
from lumina_cli.core.registry import did_you_mean

CHOICES = ("auto", "flash", "varlen", "sdpa", "direct")
ORDER = {"cuda": ("flash", "varlen", "sdpa"), "cpu": ("direct", "sdpa")}  # the quickest first
VARIABLE = ("flash", "varlen")  # take rows of any lengths in one call


def check_choice(name: str) -> None:
    """Raise UsageError where `name` is none of CHOICES."""
    if name not in CHOICES:
        hint = did_you_mean(name, CHOICES) or f"; choose from {', '.join(CHOICES)}"
        raise UsageError(f"unknown kernel {name!r}{hint}")


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the attention that `name` means for tensors on `device` in `dtype`: for "auto" the quickest.

    UsageError for a name that is none of CHOICES, MissingPart for one that cannot run here.
    """
    check_choice(name)
    if name == "auto":
        return _quickest(device, dtype)
    if reason := _missing(name, device, dtype):
        raise MissingDependency(f"--kernel {reason}")
    return name


@cache
def _quickest(device: torch.device, dtype: torch.dtype) -> str:
    """The first of ORDER that runs; remembered, because every call of a network and every row asks."""
    return next(one for one in ORDER.get(device.type, ("sdpa",)) if not _missing(one, device, dtype))


def _missing(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an attention cannot run on `device` in `dtype`, or None."""
    probe = (torch.empty(1, 1, 1, 8, dtype=dtype, device=device),) * 3
    return OP.implementations[name].missing(*probe)


def attend_packed(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, query_ends: Sequence[int], key_ends: Sequence[int]
) -> Tensor:
    """Attention of all rows in one call of a kernel of VARIABLE: (queries, h, d).

    q           (queries, h, d)   scaled already; those of row i are query_ends[i] to query_ends[i + 1]
    k, v        (keys, g, d)      those of row i are key_ends[i] to key_ends[i + 1]
    """
    ends = [torch.tensor(ends, dtype=torch.int32, device=q.device) for ends in (query_ends, key_ends)]
    longest = [max(b - a for a, b in pairwise(ends)) for ends in (query_ends, key_ends)]
    if kernel == "flash":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *ends, *longest, softmax_scale=1.0)
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, *ends, *longest, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])

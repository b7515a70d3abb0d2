"""The cache setting of a plan, such as "tea:0.2"."""

from dataclasses import dataclass

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import CACHES, did_you_mean

EXAMPLES = {"tea": 0.2, "error": 0.05}  # values in messages; others: 0.1


@dataclass(frozen=True)
class CacheSpec:
    """The parsed form of a cache setting.

    kind    a key of CACHES
    value   the threshold of the cache, or its error budget if `kind` is "error"
    """

    kind: str
    value: float


def parse_cache_spec(text: str) -> CacheSpec:
    """Parse a cache setting `KIND:VALUE`.

    Raises:
        UsageError: if the kind is not a key of CACHES or the value is not a number of at least 0.
    """
    kind, _, value = str(text).partition(":")
    if kind not in CACHES:
        hint = did_you_mean(kind, CACHES.names())
        if not hint:
            examples = ", ".join(f"{name}:{EXAMPLES.get(name, 0.1)}" for name in CACHES.names())
            hint = f"; use KIND:VALUE ({examples}) or off"
        raise UsageError(f"unknown cache {text!r}{hint}")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"cache {kind} needs a number of at least 0, such as {kind}:0.1, not {text!r}")
    return CacheSpec(kind, number)

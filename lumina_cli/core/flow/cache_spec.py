"""The cache setting of a plan, such as "tea:0.2"."""

from dataclasses import dataclass

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

KINDS = ("tea", "first", "error")


@dataclass(frozen=True)
class CacheSpec:
    """What "tea:0.2" means: a kind of KINDS, and its threshold, or of "error" the budget."""

    kind: str
    value: float


def parse_cache_spec(text: str) -> CacheSpec:
    """Return the cache setting that `text` names; UsageError where it names none."""
    kind, _, value = str(text).partition(":")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or ", but must be tea:0.2, first:0.1 or error:0.05, or off"
        raise UsageError(f"cache is {text!r}{hint}")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"cache is {text!r}, but a number from 0 must follow {kind}, such as {kind}:0.1")
    return CacheSpec(kind, number)

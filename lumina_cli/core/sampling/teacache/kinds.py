"""Kinds of caches: the entries of CACHES, which turn a setting such as "tea:0.2" into a policy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.cache_spec import parse_cache_spec
from lumina_cli.core.registry import CACHES
from lumina_cli.core.sampling.teacache.fit import FIT_FILE, CacheFit, Measurement
from lumina_cli.core.sampling.teacache.policy import CachePolicy, FirstBlockCache, TeaCache
from lumina_cli.core.weights.fingerprint import ModelFingerprint


@dataclass(frozen=True)
class CacheKind:
    """A kind of cache: an entry of CACHES. Calling it calls `policy`.

    policy      (threshold or error budget, plan, fit) -> the policy and, for a budget, its measurement
    needs_fit   whether `policy` needs the model's CacheFit
    """

    policy: Callable[[float, Plan, CacheFit | None], tuple[CachePolicy, Measurement | None]]
    needs_fit: bool = True

    def __call__(
        self, value: float, plan: Plan, fit: CacheFit | None
    ) -> tuple[CachePolicy, Measurement | None]:
        """Return the policy.

        Raises:
            LuminaError: if it needs a fit and `fit` is None.
        """
        if self.needs_fit and fit is None:
            raise LuminaError(f"cache {plan.cache} needs {FIT_FILE}; create it with `lumina bench teacache`")
        return self.policy(value, plan, fit)


@CacheKind
def tea_cache(threshold: float, plan: Plan, fit: CacheFit):
    """TeaCache with a threshold; see `TeaCache`."""
    return TeaCache(threshold, fit.curve), None


@partial(CacheKind, needs_fit=False)
def first_block_cache(threshold: float, plan: Plan, fit: CacheFit | None):
    """First-block cache with a threshold; see `FirstBlockCache`."""
    return FirstBlockCache(threshold), None


@CacheKind
def error_budget_cache(budget: float, plan: Plan, fit: CacheFit):
    """TeaCache with the largest threshold whose measured error of the latents is within a budget."""
    measurement = fit.within(budget, plan)
    return TeaCache(measurement.threshold, fit.curve), measurement


def choose_policy(plan: Plan, fit: CacheFit | None) -> tuple[CachePolicy, Measurement | None]:
    """Return the policy of `plan.cache` and, for an error budget, the measurement that sets its threshold.

    Raises:
        LuminaError: if it needs a fit and `fit` is None.
    """
    spec = parse_cache_spec(plan.cache)
    return CACHES.load(spec.kind)(spec.value, plan, fit)


def needs_fit(plan: Plan) -> bool:
    """Whether the cache of a plan needs the model's CacheFit."""
    return plan.cache is not None and CACHES.load(parse_cache_spec(plan.cache).kind).needs_fit


def fit_digest(plan: Plan, folder: Path) -> str | None:
    """Return 12 hex digits of the SHA-256 of the fit file that a plan uses; None without one."""
    content = _fit_content(plan, folder)
    return None if content is None else _digest(content)


def recognize_weights(found: str, plan: Plan, folder: Path, identity: ModelFingerprint) -> str:
    """Return `weights_for` of an image as this version states it, if an earlier one generated the image.

    found      fingerprint of the model folder, "+" and digests of changes, "+fit:" and the digest of the fit
    identity   the model folder's fingerprints

    The fit's file names the fingerprint of the model, so its digest changed with that.
    """
    changed, joint, fit = found.partition("+fit:")
    base, plus, rest = changed.partition("+")
    content = _fit_content(plan, folder) if fit else None
    if content is not None:
        current = identity.current.encode()
        if any(_digest(content.replace(current, name.encode())) == fit for name in identity.earlier):
            fit = _digest(content)
    return identity.recognize(base) + plus + rest + joint + fit


def _fit_content(plan: Plan, folder: Path) -> bytes | None:
    """Return the fit file that a plan uses; None without one."""
    path = Path(folder) / FIT_FILE
    return path.read_bytes() if needs_fit(plan) and path.is_file() else None


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:12]

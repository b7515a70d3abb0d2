"""A cache bound to a draw: which rows of each call run the main layers, and what was fitted to the model.

B pictures, N image tokens, D width. Rows of a call come as [captioned..., without caption...].
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.cache_spec import parse_cache_spec
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.registry import CACHES, SOLVERS
from lumina_cli.core.sampling.teacache.policy import (
    BranchState,
    CachePolicy,
    Curve,
    FirstBlockCache,
    GenerationState,
    TeaCache,
    should_run,
)

FIT_FILE = "teacache.json"


class LayerStackLike(Protocol):
    """The interface of `nextdit.packed.layer_stack.LayerStack` that a cache uses."""

    rows: int
    image: Callable[[int], Tensor]
    signal: Callable[[int], Tensor]
    first: Callable[[list[int]], list[Tensor]]
    run: Callable[[list[int]], list[Tensor]]


@dataclass(frozen=True)
class Measurement:
    """What a threshold did under a plan: the latents' mean relative error, and the share of rows skipped."""

    solver: str
    calls: int
    threshold: float
    error: float
    skipped: float


@dataclass(frozen=True)
class CacheFit:
    """What `lumina bench teacache` found out about a model.

    weights    the fingerprint of the model that it was fitted to
    curve      from the signal's relative change to that of what the main layers add
    r2         share of the variance that the curve explains
    points     to how many changes it was fitted
    measures   errors by plan and threshold
    """

    weights: str
    curve: Curve
    r2: float
    points: int
    measures: tuple[Measurement, ...] = ()

    def within(self, budget: float, plan: Plan) -> Measurement:
        """Return the measure of the largest threshold up to which all errors are within `budget`.

        Of the plans that were measured, the one counts whose number of calls is nearest by ratio, that of the
        same solver before others. LuminaError where nothing was measured.
        """
        if not self.measures:
            raise LuminaError(f"{FIT_FILE} holds no measured errors; `lumina bench teacache` measures them")
        calls = len(plan.calls())
        nearest = min(
            self.measures,
            key=lambda one: (
                max(calls / one.calls, one.calls / calls),
                SOLVERS.resolve(one.solver) != SOLVERS.resolve(plan.solver),
            ),
        )
        found = Measurement(nearest.solver, nearest.calls, 0.0, 0.0, 0.0)
        for one in sorted(self.measures, key=lambda one: one.threshold):
            if (one.solver, one.calls) == (nearest.solver, nearest.calls):
                if one.error > budget:
                    break
                found = one
        return found


def write_cache_fit(fit: CacheFit, path: Path) -> None:
    """Write a fit as JSON; LuminaError where the disk refuses."""
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(json.dumps(asdict(fit), indent=1) + "\n", encoding="utf-8")


def read_cache_fit(folder: Path, weights: str) -> CacheFit:
    """Return the fit beside a model; LuminaError where it is missing, damaged or of other weights."""
    path, again = Path(folder) / FIT_FILE, f"`lumina bench teacache --model {folder}` fits one"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        curve = Curve(tuple(map(float, found["curve"]["heights"])), float(found["curve"]["until"]))
        measures = tuple(Measurement(**one) for one in found["measures"])
        fit = CacheFit(found["weights"], curve, float(found["r2"]), int(found["points"]), measures)
    except FileNotFoundError:
        raise LuminaError(f"{folder} has no {FIT_FILE}, which this cache needs; {again}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LuminaError(f"{path} is not what `lumina bench teacache` writes ({error}); {again}") from error
    if not curve.until > 0 or not curve.heights or sorted((0.0, *curve.heights)) != [0.0, *curve.heights]:
        raise LuminaError(f"{path}: the curve falls or is empty; {again}")
    if fit.weights != weights:
        raise LuminaError(f"{path} was fitted to other weights ({fit.weights}, not {weights}); {again}")
    return fit


class Through:
    """A network whose main layers are left to `through`; see `NextDiT.velocity_packed`."""

    def __init__(self, model: Callable[..., Tensor], through: Callable[[LayerStackLike], list[Tensor]]):
        self.model, self.through, self.encode_text = model, through, model.encode_text

    def __call__(self, *inputs) -> Tensor:
        """Call the network."""
        return self.model.velocity_packed(*inputs, run_layers=self.through)


class LayerCache:
    """Runs the main layers of a call for the pictures that need it: `through` of the network, for one draw.

    A picture decides by what it alone has seen. The rule is that of `plan.cache`; "tea" and "error" need the
    model's `fit`.
    """

    def __init__(self, plan: Plan, fit: CacheFit | None = None):
        self.plan, (self.rule, self.measure) = plan, _policy(plan, fit)
        self.pictures: list[GenerationState] = []

    def start(self, pictures: int) -> "LayerCache":
        """Forget everything and expect a draw of so many pictures."""
        total = len(self.plan.calls())
        self.pictures = [GenerationState(total) for _ in range(pictures)]
        return self

    def __call__(self, stage: LayerStackLike) -> list[Tensor]:
        """Return the image tokens (N, D) of every row after the main layers, computed or remembered."""
        count = len(self.pictures)
        images = [stage.image(row) for row in range(stage.rows)]
        signals = self._signals(stage, images)
        running = [
            number
            for number, picture in enumerate(self.pictures)
            if should_run(self.rule, picture, signals[number::count])
        ]
        rows = [row for row in range(stage.rows) if row % count in running]
        outs = dict(zip(rows, stage.run(rows), strict=True))
        memories = [self.pictures[row % count].branches[row // count] for row in range(stage.rows)]
        for row, out in outs.items():
            memories[row].residual = out - images[row]
        return [
            outs[row] if row in outs else image + memories[row].residual for row, image in enumerate(images)
        ]

    def _signals(self, stage: LayerStackLike, images: list[Tensor]) -> list[Tensor]:
        rows = list(range(stage.rows))
        if isinstance(self.rule, FirstBlockCache):
            return [out - image for out, image in zip(stage.first(rows), images, strict=True)]
        return [stage.signal(row) for row in rows]

    def drop(self) -> None:
        """Let go of all tensors; the counts stay for `report`."""
        for picture in self.pictures:
            picture.branches = (BranchState(), BranchState())

    def report(self, picture: int | None = None) -> dict:
        """Return how many rows of calls there were and how many were skipped, of one picture or of all.

        "threshold" is the one in force; for a budget "measured" says under what its error was measured.
        """
        chosen = self.pictures if picture is None else [self.pictures[picture]]
        told = {"cache": self.plan.cache, "threshold": self.rule.threshold}
        told |= {"rows": sum(one.rows for one in chosen), "skipped": sum(one.skipped for one in chosen)}
        if self.measure:
            told["measured"] = f"{self.measure.solver}, {self.measure.calls} calls"
        return told


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
        """Return the policy; LuminaError if it needs a fit and `fit` is None."""
        if self.needs_fit and fit is None:
            raise LuminaError(f"cache {plan.cache} needs a {FIT_FILE}; `lumina bench teacache` fits one")
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
    measure = fit.within(budget, plan)
    return TeaCache(measure.threshold, fit.curve), measure


def needs_fit(plan: Plan) -> bool:
    """Whether the cache of a plan needs the model's CacheFit."""
    return plan.cache is not None and CACHES.load(parse_cache_spec(plan.cache).kind).needs_fit


def cache_for(plan: Plan, folder: Path, weights: str) -> LayerCache | None:
    """Return the cache that a plan asks for, with the fit beside the model; None where it asks for none."""
    if plan.cache is None:
        return None
    return LayerCache(plan, read_cache_fit(folder, weights) if needs_fit(plan) else None)


def fit_digest(plan: Plan, folder: Path) -> str | None:
    """Return 12 hex digits of the file that the cache of a plan goes by; None where it needs or has none."""
    path = Path(folder) / FIT_FILE
    if not needs_fit(plan) or not path.is_file():
        return None
    return sha256(path.read_bytes()).hexdigest()[:12]


def _policy(plan: Plan, fit: CacheFit | None) -> tuple[CachePolicy, Measurement | None]:
    """Return the policy of `plan.cache` and, for an error budget, the measurement behind it."""
    spec = parse_cache_spec(plan.cache)
    return CACHES.load(spec.kind)(spec.value, plan, fit)

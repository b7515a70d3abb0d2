"""The fit of a cache to a model, and its file `teacache.json` in the model folder."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.limits import read_json_file
from lumina_cli.core.registry import SOLVERS
from lumina_cli.core.sampling.teacache.policy import Curve

FIT_FILE = "teacache.json"


@dataclass(frozen=True)
class Measurement:
    """Effect of a threshold under a plan.

    error     mean over images of the relative error of the latents
    skipped   fraction of the batch entries that reused a residual
    """

    solver: str
    calls: int
    threshold: float
    error: float
    skipped: float


@dataclass(frozen=True)
class CacheFit:
    """Result of `lumina bench teacache` for a model.

    weights    fingerprint of the model
    curve      relative L1 distance of the modulated input -> that of the residual of the main layers
    r2         fraction of the variance that the curve explains
    points     number of distances that it was fitted to
    measures   errors by plan and threshold
    """

    weights: str
    curve: Curve
    r2: float
    points: int
    measures: tuple[Measurement, ...] = ()

    def within(self, budget: float, plan: Plan) -> Measurement:
        """Return the measurement of the largest threshold up to which all errors are within `budget`.

        It uses the measured plan whose number of calls has the nearest ratio to that of `plan`; among equals,
        one with the same solver.

        Raises:
            LuminaError: if the fit contains no measurements.
        """
        if not self.measures:
            raise LuminaError(
                f"{FIT_FILE} contains no measured errors; measure them with `lumina bench teacache`"
            )
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
    """Write a fit as JSON.

    Raises:
        LuminaError: if writing fails.
    """
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(json.dumps(asdict(fit), indent=1) + "\n", encoding="utf-8")


def read_cache_fit(folder: Path, weights: str, earlier: Collection[str] = ()) -> CacheFit:
    """Return the fit in a model folder; `earlier` are other fingerprints of the same weights.

    Raises:
        LuminaError: if it is missing, damaged or was made for other weights.
    """
    path, remedy = Path(folder) / FIT_FILE, f"create one with `lumina bench teacache --model {folder}`"
    try:
        found = read_json_file(path)
        curve = Curve(tuple(map(float, found["curve"]["heights"])), float(found["curve"]["until"]))
        measures = tuple(Measurement(**one) for one in found["measures"])
        fit = CacheFit(found["weights"], curve, float(found["r2"]), int(found["points"]), measures)
    except FileNotFoundError:
        raise LuminaError(f"{folder} does not contain {FIT_FILE}, which this cache needs; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LuminaError(f"{path} is not a valid TeaCache calibration file ({error}); {remedy}") from error
    if not curve.until > 0 or not curve.heights or sorted((0.0, *curve.heights)) != [0.0, *curve.heights]:
        raise LuminaError(f"{path}: the curve decreases or is empty; {remedy}")
    if fit.weights not in (weights, *earlier):
        raise LuminaError(
            f"{path} was calibrated for different weights ({fit.weights}, not {weights}); {remedy}"
        )
    return fit

"""The plan: every setting that decides how a picture is drawn from its noise and its caption."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow.guidance import guide
from lumina_cli.core.flow.solvers import Velocity, even_grid
from lumina_cli.core.registry import SOLVERS, did_you_mean


@dataclass(frozen=True)
class Plan:
    """How to draw: solver, number of steps and their times, guidance.

        solver        a key of SOLVERS
        steps         intervals between times; euler and dpm call the network once in each, the others twice
        shift         spends more steps near the noise; 1 spreads them evenly
        guidance      how far to move away from the velocity without a caption; 1 stays at the caption's own
        guide_until   guidance runs while t < guide_until; 1 is always, 0 never
        renorm        a guided velocity may be this many times as large as the caption's own; None is no limit

    Raises UsageError for a value that cannot be.
    """

    solver: str = "midpoint"
    steps: int = 17
    shift: float = 6.0
    guidance: float = 4.0
    guide_until: float = 0.25
    renorm: float | None = 1.0

    def __post_init__(self):
        _check(isinstance(self.solver, str), "solver", self.solver, f"one of {', '.join(SOLVERS)}")
        SOLVERS.load(self.solver)
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        _check(whole and self.steps >= 1, "steps", self.steps, "a whole number from 1")
        _check(_is_number(self.shift) and self.shift > 0, "shift", self.shift, "a number above 0")
        _check(_is_number(self.guidance), "guidance", self.guidance, "a number")
        _check(
            _is_number(self.guide_until), "guide_until", self.guide_until, "a number; 1 is always, 0 never"
        )
        fits = self.renorm is None or (_is_number(self.renorm) and self.renorm > 0)
        _check(fits, "renorm", self.renorm, "a number above 0, or off")

    def times(self) -> list[float]:
        """Return the `steps` + 1 times of the solver's grid, the last one exactly 1."""
        grid = getattr(SOLVERS.load(self.solver), "grid", even_grid)
        return grid(self.steps, self.shift)

    def solve(self, plain: Velocity, paired: Velocity, noise: Tensor) -> Iterator[Tensor]:
        """Yield the state after every step from `noise`; the velocities are those of `guidance.guide`."""
        guided = guide(plain, paired, self.guidance, self.guide_until, self.renorm)
        return SOLVERS.load(self.solver)(guided, noise, self.times())

    def to_json(self) -> dict:
        """Return the settings as a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict | str) -> "Plan":
        """Read what `to_json` returned, as a dict or as JSON text; settings left out keep their defaults."""
        if isinstance(settings, str):
            try:
                settings = json.loads(settings)
            except ValueError as error:
                raise UsageError(f"the plan {settings!r} is not JSON: {error}") from error
        _check(isinstance(settings, dict), "a plan", settings, 'settings by name, such as {"steps": 17}')
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise UsageError(f"a plan has no setting {name!r}{did_you_mean(name, known)}")
        return cls(**settings)


def read_settings(text: str) -> dict:
    """Return settings of a plan from "steps=20,renorm=off", or from a JSON file with them.

    Raises UsageError for what is neither, and for settings that no plan can have.
    """
    try:
        if not text or "=" in text:
            pairs = [word.partition("=") for word in text.split(",") if word]
            settings = {name.strip(): _read_value(value.strip()) for name, _, value in pairs}
        else:
            settings = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{text!r} is no plan: give steps=20,shift=3 or a JSON file ({error})") from error
    Plan.from_json(settings)
    return settings


def _read_value(text: str):
    """A number, None for "off", or the text itself."""
    if text == "off":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _check(fits: bool, name: str, value, wanted: str) -> None:
    if not fits:
        raise UsageError(f"{name} is {value!r}, but must be {wanted}")

"""The plan: every setting that decides how an image is generated from its noise and its caption."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow.cache_spec import parse_cache_spec
from lumina_cli.core.flow.guidance import NORMS, Guidance, guide
from lumina_cli.core.flow.solvers import Solver, Velocity
from lumina_cli.core.limits import parse_json, read_json_file, shorten
from lumina_cli.core.registry import GUIDANCE, SOLVERS, Registry, did_you_mean

UNITS = ("time", "steps", "sigma")
MAX_STEPS = 10_000  # of a plan: plans come from files and images of other people, too
LARGEST = sys.float_info.max  # an integer beyond does not fit into a float
_STEPS = f"an integer of at least 1, and at most {MAX_STEPS}"


@dataclass(frozen=True)
class Call:
    """One network call.

    step       index of the solver's step, from 0
    t          time of the call
    branches   guidance branches per image: 1 without guidance, 2 with it
    """

    step: int
    t: float
    branches: int


@dataclass(frozen=True)
class Plan:
    """Sampling settings: the solver, its steps and their times, and guidance.

        solver        a name in SOLVERS
        steps         intervals between times; `calls_per_step` network calls in each
        shift         time shift: above 1 puts more steps near the noise, 1 spaces them evenly
        guidance      classifier-free guidance scale; 1 disables guidance
        guide_until   guidance stops here, exclusive; 1: never, 0: no guidance
        renorm        largest norm of a guided velocity, as a multiple of the conditional one; "row": each row
                      of the latents gets the norm of the conditional one; None: no limit
        guide         a name in GUIDANCE: cfg, apg (adaptive projected guidance) or cfg-zero (CFG-Zero*)
        guide_from    guidance starts here
        guide_unit    unit of guide_from and guide_until: "time", from noise to data; "steps", a fraction of
                      the steps, each with all its calls; "sigma", 1 - time: guide_from <= sigma < guide_until
        parallel      for apg: eta, the fraction kept of the update parallel to the predicted data
        momentum      for apg: momentum (beta), the fraction of the previous update that is added
        push_limit    for apg: norm threshold (r), the largest norm of the update; None: no limit
        cache         layer cache: "tea:0.2" and "first:0.1" skip main layers below a threshold, "error:0.05"
                      up to a measured error of the latents; None: off
        renorm_of     what renorm compares: the "velocity", or the "data" it predicts

    Raises:
        UsageError: if a value is invalid; the message names the setting and its valid values.

    Source: Lumina-Image 2.0, CFG-Renorm and CFG-Trunc; guidance intervals: arXiv 2404.07724.
    """

    solver: str = "midpoint"
    steps: int = 17
    shift: float = 6.0
    guidance: float = 4.0
    guide_until: float = 0.25
    renorm: float | str | None = 1.0
    guide: str = "cfg"
    guide_from: float = 0.0
    guide_unit: str = "time"
    parallel: float = 0.0
    momentum: float = -0.5
    push_limit: float | None = None
    cache: str | None = None
    renorm_of: str = "velocity"

    def __post_init__(self):
        _check(isinstance(self.solver, str), "solver", self.solver, SOLVERS)
        SOLVERS.load(self.solver)
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        _check(whole and 1 <= self.steps <= MAX_STEPS, "steps", self.steps, _STEPS)
        _check(_is_number(self.shift) and self.shift > 0, "shift", self.shift, "a positive number")
        fits = isinstance(self.guide, str) and self.guide in GUIDANCE
        _check(fits, "guide", self.guide, GUIDANCE)
        _check(self.guide_unit in UNITS, "guide_unit", self.guide_unit, f"one of {', '.join(UNITS)}")
        _check(
            _is_number(self.guide_until), "guide_until", self.guide_until, "a number (1: always, 0: never)"
        )
        for name in ("guidance", "guide_from", "parallel", "momentum"):
            _check(_is_number(getattr(self, name)), name, getattr(self, name), "a number")
        fits = self.renorm in (None, "row") or (_is_number(self.renorm) and self.renorm > 0)
        _check(fits, "renorm", self.renorm, "a positive number, row, or off")
        _check(self.renorm_of in NORMS, "renorm_of", self.renorm_of, f"one of {', '.join(NORMS)}")
        fits = self.push_limit is None or (_is_number(self.push_limit) and self.push_limit > 0)
        _check(fits, "push_limit", self.push_limit, "a positive number, or off")
        if self.cache is not None:
            parse_cache_spec(self.cache)

    @property
    def calls_per_step(self) -> int:
        """Network calls per step of the solver."""
        return self._solver().calls

    def times(self) -> list[float]:
        """Return the `steps` + 1 times of the solver's grid; the last one is exactly 1."""
        return self._solver().grid(self.steps, self.shift)

    def guides(self, step: int, t: float) -> bool:
        """Whether a call in step `step`, from 0, at time `t` is guided."""
        low, high = self.guide_from, self.guide_until
        if self.guidance == 1 or low >= high:
            return False
        if self.guide_unit == "steps":  # as in diffusers; a step's last call may be at the time of its end
            return low <= step / self.steps and (step + 1) / self.steps <= high
        place = t if self.guide_unit == "time" else 1 - t
        return low <= place and (place < high or high >= 1)

    def skips_network(self, step: int) -> bool:
        """Whether step `step`, from 0, leaves the state unchanged without a network call (zero-init)."""
        return step == 0 and self.steps > 1 and self._guidance().zero_init

    def solve(self, plain: Velocity, paired: Velocity, noise: Tensor) -> Iterator[Tensor]:
        """Yield the state (B, ...) after every step, starting from `noise` (B, ...).

        plain    (B, ...) -> (B, ...)     velocity with each image's caption; called when guidance is off
        paired   (2B, ...) -> (2B, ...)   first half with the captions, second half without; called when
                                          guidance is on
        """
        yield from self.solve_from(plain, paired, noise, self.times())

    def solve_from(
        self,
        plain: Velocity,
        paired: Velocity,
        x: Tensor,
        times: Sequence[float],
        wrap: Callable[[Velocity], Velocity] = lambda velocity: velocity,
    ) -> Iterator[Tensor]:
        """Yield the state after every step, starting from the state `x` at times[0].

        times   the last times of the plan
        wrap    replaces the velocity that the solver follows
        """
        step = first = self.steps + 1 - len(times)  # the current step
        guided = guide(paired, self._guidance()(self), self.renorm, self.renorm_of)

        def velocity(x: Tensor, t: float) -> Tensor:
            if self.skips_network(step):
                return torch.zeros_like(x)
            return guided(x, t) if self.guides(step, t) else plain(x, t)

        states = self._solver()(wrap(velocity), x, times)
        for step, state in enumerate(states, start=first + 1):  # noqa: B007
            yield state

    def _solver(self) -> Solver:
        return SOLVERS.load(self.solver)

    def _guidance(self) -> Guidance:
        return GUIDANCE.load(self.guide)

    def calls(self) -> list[Call]:
        """Return the network calls for one image, in order."""
        made: list[Call] = []
        step = 0

        def record(branches: int) -> Velocity:
            def velocity(x: Tensor, t: float) -> Tensor:
                made.append(Call(step, t, branches))
                return torch.zeros_like(x)

            return velocity

        for step, _ in enumerate(self.solve(record(1), record(2), torch.zeros(1, 1)), start=1):  # noqa: B007
            pass
        return made

    def to_json(self) -> dict:
        """Return the settings as a JSON-serializable dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict | str) -> "Plan":
        """Return the plan with these settings, a dict or JSON text; missing settings have their defaults.

        Raises:
            UsageError: if the text is not JSON, or a setting is unknown or invalid.
        """
        values: Any = settings
        if isinstance(settings, str):
            try:
                values = parse_json(settings)
            except ValueError as error:
                raise UsageError(f"the plan {shorten(settings, 200)!r} is not JSON: {error}") from error
        _check(isinstance(values, dict), "a plan", values, 'settings by name, such as {"steps": 17}')
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"a plan has no setting {name!r}{did_you_mean(name, known)}")
        return cls(**values)


def read_settings(text: str) -> dict:
    """Return settings of a plan from text such as "steps=20,renorm=off", or from a JSON file.

    Raises:
        UsageError: if `text` is neither, or a setting is unknown or invalid.
    """
    try:
        if not text or "=" in text:
            pairs = [word.partition("=") for word in text.split(",") if word]
            settings = {name.strip(): _read_value(value.strip()) for name, _, value in pairs}
        else:
            settings = read_json_file(text)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--plan {text!r}: expected settings such as steps=20,shift=3, or a JSON file ({error})"
        ) from error
    Plan.from_json(settings)
    return settings


def _read_value(text: str):
    """Return a JSON value, None for "off", or the text."""
    if text == "off":
        return None
    try:
        return parse_json(text)
    except ValueError:
        return text


def _is_number(value) -> bool:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return fits and abs(value) <= LARGEST


def _show(value) -> str:
    try:
        return shorten(repr(value), 200)
    except (
        ValueError,
        RecursionError,
    ):  # too many digits, or nested too deeply
        return "such a value"


def _check(fits: bool, name: str, value, wanted: str | Registry) -> None:
    if not fits:
        if isinstance(wanted, Registry):  # only now: listing its names reads the metadata of all packages
            wanted = f"one of {', '.join(wanted.names())}"
        raise UsageError(f"{name} must be {wanted}, not {_show(value)}")

"""Sampling requests: a job describes one image, a request the settings that all rows share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina_cli.core.encoders.prompts import full_negative, full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.images.sizes import Size, parse_ratio, parse_size
from lumina_cli.core.io.jsonl import check_row
from lumina_cli.core.io.row_checks import checked_prompt
from lumina_cli.core.models.folder import ModelFolder, PlanLike


@dataclass(frozen=True)
class Job:
    """One image to generate. Its noise is the `number`-th of `seed`, in any batch.

    negative   the negative prompt; "": guidance uses the empty prompt
    """

    prompt: str
    seed: int = 0
    number: int = 0
    negative: str = ""


@dataclass(frozen=True)
class SamplingRequest:
    """Settings of all rows.

    seed, size, negative   for rows that have none of their own; with several seeds, each row has images of
                           each
    count                  images per row
    plan                   a Plan, or settings that override the preset's; "calls" may be given instead of
                           "steps"
    preset                 the plan to start from, by name or as a YAML file; None: the model's own plan
    system                 the system prompt, by name or as text; None: the model's own
    negative_system        whether the negative prompt also gets the system prompt; None: as in the preset
    """

    seed: int | tuple[int, ...] = 0
    count: int = 1
    size: Size = None
    plan: PlanLike = None
    preset: str | Path | None = None
    system: str | None = None
    negative: str = ""
    negative_system: bool | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of rows that have none of their own."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    def check(self) -> None:
        """Validate what can be validated without a model.

        Raises:
            UsageError: if a setting, the size, the system prompt or the count is invalid.
        """
        if not isinstance(self.plan, Plan):
            given = dict(self.plan or {})
            check_settings(given)
            Plan.from_json({name: value for name, value in given.items() if name != "calls"})
            if self.preset is not None:
                find_preset(self.preset).resolve(1.0, given)
        check_size(self.size)
        full_prompt("", self.system or "real")
        check_at_least(1, count=self.count)

    def resolve(self, model: ModelFolder) -> "ResolvedRequest":
        """Return the settings with this model's own plan filled in.

        Raises:
            UsageError: if a setting of the plan is invalid.
        """
        with_system = self.negative_system
        if with_system is None:
            with_system = True if self.preset is None else find_preset(self.preset).negative_system
        return ResolvedRequest(
            model.plan_for(self.plan, self.preset), self.system or model.default_system, with_system
        )


@dataclass(frozen=True)
class ResolvedRequest:
    """The settings that, with the job, the size and the weights, determine an image.

    negative_system   whether a negative prompt that is not empty also gets the system prompt
    """

    plan: Plan
    system: str = "real"
    negative_system: bool = True

    def prompt(self, job: Job) -> str:
        """Return the text to encode for the prompt of a job: system prompt and prompt."""
        return full_prompt(job.prompt, self.system)

    def negative(self, job: Job) -> str:
        """Return the text to encode for the unconditional branch: the negative or the empty prompt."""
        return full_negative(job.negative, self.system, self.negative_system)


def checked_rows(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield the rows, validating each; seeds become integers.

    Raises:
        LuminaError: at the first row with an invalid prompt, seed, negative prompt or size.
    """
    for number, row in enumerate(rows, start=1):
        check_row(row, "prompt", f"row {number}")
        row = checked_prompt(row, f"row {number}")
        try:
            check_size(row.get("size"))
        except UsageError as error:
            raise LuminaError(f"row {number}: {error}") from error
        yield row


def check_size(size: Size) -> None:
    """Validate the syntax of a size.

    Raises:
        UsageError: if it is not a size or a ratio.
    """
    if size is not None and not parse_ratio(size):
        parse_size(size)


def check_settings(given: Mapping[str, Any]) -> None:
    """Validate settings of a plan that a plan itself cannot or does not restrict.

    Images of earlier versions may have a negative guidance, which repels from the prompt.

    Raises:
        UsageError: if "calls" or "guidance" is invalid.
    """
    check_at_least(1, calls=given.get("calls"))
    guidance = given.get("guidance")
    if isinstance(guidance, int | float) and guidance < 0:
        raise UsageError(f"guidance must be at least 0 (1 disables it), not {guidance:g}")


def check_at_least(least: int, **numbers: int | None) -> None:
    """Validate integers by name; None is valid.

    Raises:
        UsageError: for a value that is not an integer or is smaller than `least`.
    """
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or number < least):
            raise UsageError(f"{name} must be an integer of at least {least}, not {number!r}")


def size_of(
    row: dict, request: SamplingRequest, model: ModelFolder, known: dict, note: Callable[[str], None]
) -> tuple[int, int]:
    """Return (width, height) of a row's images; a ratio becomes the nearest size.

    `known` caches sizes by what was requested; `note` is called once for each ratio.
    """
    requested = row.get("size") or request.size
    requested = tuple(requested) if isinstance(requested, list) else requested
    if requested not in known:
        known[requested] = model.size_for(requested)
        if parse_ratio(requested):
            note("size {}: {}x{}, the nearest size of this model".format(requested, *known[requested]))
    return known[requested]

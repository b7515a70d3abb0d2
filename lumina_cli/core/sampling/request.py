"""What is to be drawn: a job is one picture; a wish holds for every row that does not say otherwise."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.encoders.prompts import full_negative, full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.images.sizes import Size, parse_ratio, parse_size
from lumina_cli.core.io.jsonl import check_prompt
from lumina_cli.core.models.folder import ModelFolder, PlanLike


@dataclass(frozen=True)
class Job:
    """One picture to draw: its noise is the `number`-th of `seed`, whatever else is drawn beside it.

    negative   what guidance moves away from; without it the empty prompt
    """

    prompt: str
    seed: int = 0
    number: int = 0
    negative: str = ""


@dataclass(frozen=True)
class SamplingRequest:
    """What is asked for all rows.

    seed, size, negative   of the rows that name none of their own
    count                  pictures for each row
    plan                   a Plan, or settings over those of the preset; "calls" may stand for "steps"
    preset                 whose settings to follow, by name or as a YAML file; without it the model's own
    system                 the system prompt, by name or as text
    negative_system        whether it also stands before a negative prompt; without it as the preset says
    """

    seed: int = 0
    count: int = 1
    size: Size = None
    plan: PlanLike = None
    preset: str | Path | None = None
    system: str = "real"
    negative: str = ""
    negative_system: bool | None = None

    def check(self) -> None:
        """Raise what can be known to be wrong without waiting for a model."""
        if not isinstance(self.plan, Plan):
            given = dict(self.plan or {})
            check_at_least(1, calls=given.get("calls"))
            Plan.from_json({name: value for name, value in given.items() if name != "calls"})
            if self.preset is not None:
                find_preset(self.preset).resolve(1.0, given)
        check_size(self.size)
        full_prompt("", self.system)
        check_at_least(1, count=self.count)

    def resolve(self, model: ModelFolder) -> "ResolvedRequest":
        """Return what the wish comes to with this model."""
        with_system = self.negative_system
        if with_system is None:
            with_system = True if self.preset is None else find_preset(self.preset).negative_system
        return ResolvedRequest(model.plan_for(self.plan, self.preset), self.system, with_system)


@dataclass(frozen=True)
class ResolvedRequest:
    """What decides a picture beside its job, its size and the weights.

    negative_system   whether the system prompt also stands before a negative prompt that is not empty
    """

    plan: Plan
    system: str = "real"
    negative_system: bool = True

    def prompt(self, job: Job) -> str:
        """Return the string that the text encoder reads for the prompt of a job."""
        return full_prompt(job.prompt, self.system)

    def negative(self, job: Job) -> str:
        """Return the string that the text encoder reads for what guidance moves away from."""
        return full_negative(job.negative, self.system, self.negative_system)


def checked_rows(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield rows as they are; LuminaError at the first that no model can draw."""
    for number, row in enumerate(rows, start=1):
        check_prompt(row, f"row {number}")
        try:
            check_size(row.get("size"))
        except UsageError as error:
            raise LuminaError(f"row {number}: {error}") from error
        yield row


def check_size(size: Size) -> None:
    """Raise UsageError for a size that no model can draw."""
    if size is not None and not parse_ratio(size):
        parse_size(size)


def check_at_least(least: int, **numbers: int | None) -> None:
    """Raise UsageError for a number, if it is there, that is no whole number from `least`."""
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or number < least):
            raise UsageError(f"{name} is {number!r}, but must be {least} or more")

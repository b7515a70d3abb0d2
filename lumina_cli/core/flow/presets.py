"""Presets: whole plans by name, and what `steps` counts where another program's habits are followed."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.recipe import load_recipe, packaged_recipes
from lumina_cli.core.registry import did_you_mean

FOLDER = "sample/"  # of the recipes
STRICT = ConfigDict(extra="forbid", frozen=True)
SWITCHES = {"renorm": float | Literal["row", "off"], "push_limit": float | Literal["off"]}

Settings = create_model(
    "Settings",
    __config__=STRICT,
    **{
        field.name: (SWITCHES.get(field.name, get_type_hints(Plan)[field.name]), field.default)
        for field in fields(Plan)
    },
)


class Preset(BaseModel):
    """A file of recipes/sample, or one like it.

    steps_are         what --steps counts: steps, or points in time, of which there is one more
    negative_system   whether the system prompt also stands before a negative prompt that is not empty
    plan              settings of a Plan; a shift that is not named is the model's own
    """

    model_config = STRICT

    steps_are: Literal["steps", "points"] = "steps"
    negative_system: bool = False
    plan: Settings = Settings()

    def resolve(self, shift: float, given: dict[str, Any]) -> Plan:
        """Return the plan for a model of this time shift, with the settings `given` over the preset's.

        `given` may hold "calls", a budget of network calls, in place of "steps". UsageError where it does not
        reach for a step.
        """
        own = {name: getattr(self.plan, name) for name in self.plan.model_fields_set}
        plan = Plan.from_json({"shift": shift} | {name: _value(value) for name, value in own.items()})
        return apply(plan, given, self.steps_are)


def apply(plan: Plan, given: dict[str, Any], steps_are: str = "steps") -> Plan:
    """Return `plan` with settings changed; "calls" gives as many steps as so many calls are enough for."""
    given = dict(given)
    calls, steps = given.pop("calls", None), given.get("steps")
    if calls is not None and steps is not None:
        raise UsageError("steps and calls both say how long to draw; give one of them")
    if type(steps) is int and steps_are == "points":
        if steps < 2:
            raise UsageError(
                f"steps is {steps}, but this preset counts points in time, of which 2 are a step"
            )
        given["steps"] = steps - 1
    plan = Plan.from_json({**plan.to_json(), **given})
    if calls is None:
        return plan
    if calls < plan.calls_per_step:
        raise UsageError(f"{calls} calls are no step: {plan.solver} needs {plan.calls_per_step} for each")
    return replace(plan, steps=calls // plan.calls_per_step)


def _value(value: Any) -> Any:
    return None if value == "off" else value


def find_preset(name: str | Path) -> Preset:
    """Return a packaged preset by name, or that of a YAML file; UsageError lists the names."""
    known = [one.removeprefix(FOLDER) for one in packaged_recipes() if one.startswith(FOLDER)]
    if str(name) in known:
        return load_recipe(FOLDER + str(name), Preset)
    if Path(name).suffix in (".yaml", ".yml"):
        return load_recipe(name, Preset)
    hint = did_you_mean(str(name), known) or f"; choose from {', '.join(known)}, or give a .yaml file"
    raise UsageError(f"unknown preset {str(name)!r}{hint}")

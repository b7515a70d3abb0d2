"""Presets: plans by name, with the conventions of the program that they follow."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.recipe import load_recipe, packaged_recipes
from lumina_cli.core.registry import did_you_mean

FOLDER = "sample/"  # inside the packaged recipes
STRICT = ConfigDict(extra="forbid", frozen=True)
SWITCHES = {"renorm": float | Literal["row", "off"], "push_limit": float | Literal["off"]}

_FIELDS: dict[str, Any] = {
    field.name: (SWITCHES.get(field.name, get_type_hints(Plan)[field.name]), field.default)
    for field in fields(Plan)
}
# the settings of a plan, each with the default of `Plan`
Settings = create_model("Settings", __config__=STRICT, **_FIELDS)


class Preset(BaseModel):
    """A file in recipes/sample, or a user's file with the same fields.

    steps_are         what --steps counts: solver steps, or points in time (one more than there are steps)
    negative_system   whether a non-empty negative prompt is preceded by the system prompt
    plan              settings of a Plan; without `shift`, the model's own shift applies
    """

    model_config = STRICT

    steps_are: Literal["steps", "points"] = "steps"
    negative_system: bool = False
    plan: Settings = Settings()  # type: ignore[valid-type]

    def resolve(self, shift: float, given: dict[str, Any]) -> Plan:
        """Return the plan for a model.

        shift   the model's time shift, used if the preset does not set one
        given   settings that override the preset's; may contain "calls", see `apply`

        Raises:
            UsageError: as `apply`.
        """
        own = {name: getattr(self.plan, name) for name in self.plan.model_fields_set}  # type: ignore[attr-defined]
        plan = Plan.from_json({"shift": shift} | {name: _value(value) for name, value in own.items()})
        return apply(plan, given, self.steps_are)


def apply(plan: Plan, given: dict[str, Any], steps_are: str = "steps") -> Plan:
    """Return `plan` with the settings `given` changed.

    Instead of "steps", `given` may contain "calls", a budget of network calls, for as many steps as fit.

    Raises:
        UsageError: if a setting is unknown or invalid, both "steps" and "calls" are given, or the budget is
            too small for one step.
    """
    given = dict(given)
    calls, steps = given.pop("calls", None), given.get("steps")
    if calls is not None and steps is not None:
        raise UsageError("--steps and --calls are mutually exclusive")
    if type(steps) is int and steps_are == "points":
        if steps < 2:
            raise UsageError(
                "steps must be at least 2 with this preset, which counts time points (solver steps + 1), "
                f"not {steps}"
            )
        given["steps"] = steps - 1
    plan = Plan.from_json({**plan.to_json(), **given})
    if calls is None:
        return plan
    if calls < plan.calls_per_step:
        raise UsageError(
            f"calls must be at least {plan.calls_per_step}, the calls per step of {plan.solver}, not {calls}"
        )
    return replace(plan, steps=calls // plan.calls_per_step)


def _value(value: Any) -> Any:
    return None if value == "off" else value


def find_preset(name: str | Path) -> Preset:
    """Return a packaged preset by name, or the preset in a YAML file.

    Raises:
        UsageError: if no preset has that name, or the file is invalid.
    """
    known = [one.removeprefix(FOLDER) for one in packaged_recipes() if one.startswith(FOLDER)]
    if str(name) in known:
        return load_recipe(FOLDER + str(name), Preset)
    if Path(name).suffix in (".yaml", ".yml"):
        return load_recipe(name, Preset)
    hint = did_you_mean(str(name), known) or f"; choose from {', '.join(known)}, or give a .yaml file"
    raise UsageError(f"unknown preset {str(name)!r}{hint}")

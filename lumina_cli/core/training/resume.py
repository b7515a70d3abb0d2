"""The settings of a resumed run: those that it was started with, with the new overrides applied."""

from pathlib import Path

from pydantic import BaseModel

from lumina_cli.core.errors import UsageError
from lumina_cli.core.recipe import load_recipe


def settings_file(out: Path, part: str) -> Path:
    """Return the path of the saved settings of a run; the nano components share one folder."""
    return out / ("recipe.yaml" if part == "transformer" else f"{part}.yaml")


def resumed_settings(
    named: BaseModel, recipe: str | None, out: Path, overrides: list[str]
) -> tuple[BaseModel, list[str]]:
    """Return the settings saved in `out` with `overrides` applied, and the names in which `recipe` differs.

    `named` is the result of `recipe` (None: no recipe was given) and `overrides`; it is returned if `out`
    has no saved settings.

    Raises:
        UsageError: if the run would continue with another model.
    """
    path = settings_file(out, named.part)
    if not path.exists():
        return named, []
    before, now = (load_recipe(path, type(named), words) for words in ([], overrides))
    requested = named if recipe else now
    if getattr(requested, "model", None) != getattr(before, "model", None):
        raise UsageError(
            f"{out} trains the model {before.model}, not {requested.model}; "
            f"without RECIPE and model=, --resume uses {path}"
        )
    return now, differences(now.model_dump(), requested.model_dump())


def differences(one: dict, other: dict, group: str = "") -> list[str]:
    """Return the dotted names of the settings in which two recipes differ."""
    names = []
    for name in one | other:
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differences(a, b, f"{group}{name}.")
        elif a != b:
            names.append(group + name)
    return names

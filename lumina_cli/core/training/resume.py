"""The settings that a run goes on with: those it was started with, and what is said now laid over them."""

from pathlib import Path

from pydantic import BaseModel

from lumina_cli.core.errors import UsageError
from lumina_cli.core.recipe import load_recipe


def settings_file(out: Path, part: str) -> Path:
    """Return where a run keeps its settings; nano's small parts share one folder."""
    return out / ("recipe.yaml" if part == "transformer" else f"{part}.yaml")


def resumed_settings(
    named: BaseModel, recipe: str | None, out: Path, overrides: list[str]
) -> tuple[BaseModel, list[str]]:
    """Return the settings saved in `out` under `overrides`, and where those of `recipe` differ.

    `named` is what `recipe` (None: no recipe was named) and `overrides` say; it serves where `out` holds no
    settings. UsageError where a run would go on as another model.
    """
    path = settings_file(out, named.part)
    if not path.exists():
        return named, []
    before, now = (load_recipe(path, type(named), words) for words in ([], overrides))
    wanted = named if recipe else now
    if getattr(wanted, "model", None) != getattr(before, "model", None):
        raise UsageError(
            f"{out} trains the model {before.model}, not {wanted.model}; "
            f"without RECIPE and model=, --resume goes on with {path}"
        )
    return now, differences(now.model_dump(), wanted.model_dump())


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

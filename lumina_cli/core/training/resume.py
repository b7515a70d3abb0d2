"""The settings of a resumed run: those that it was started with, with the new overrides applied."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.recipe import load_recipe
from lumina_cli.core.registry import PARTS
from lumina_cli.core.training.config import Recipe, absolute_paths
from lumina_cli.core.weights.checksums import find_damage

Note = Callable[[str], None]


def settings_file(out: Path, part: str) -> Path:
    """Return the path of the saved settings of a run; the nano components share one folder."""
    return out / ("recipe.yaml" if part == "transformer" else f"{part}.yaml")


def packaged_recipe(part: str) -> str:
    """Return the name of the packaged recipe that trains a part, such as nano-text for text_encoder."""
    return "nano" if part == "transformer" else f"nano-{part.partition('_')[0]}"


def resumed_settings(
    named: BaseModel, recipe: str | None, out: Path, overrides: list[str]
) -> tuple[BaseModel, BaseModel, list[str]]:
    """Return the settings saved in `out` with `overrides` applied, those without them, and differences.

    The differences are the names of the settings in which `recipe` differs. `named` is the result of `recipe`
    (None: no recipe was given) and `overrides`; it is returned if `out` has no saved settings.

    Raises:
        UsageError: if the run would continue with another model.
    """
    path = settings_file(out, named.part)
    if not path.exists():
        return named, named, []
    before, now = (absolute_paths(load_recipe(path, type(named), words)) for words in ([], overrides))
    requested = named if recipe else now
    if getattr(requested, "model", None) != getattr(before, "model", None):
        raise UsageError(
            f"{out} trains the model {before.model}, not {requested.model}; "
            f"without RECIPE and model=, --resume uses {path}"
        )
    return now, before, list(differences(now.model_dump(), requested.model_dump()))


def differences(one: dict, other: dict, group: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> both values, of the settings in which two recipes differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in one | other:
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{group}{name}.")
        elif a != b:
            found[group + name] = (a, b)
    return found


def describe_changes(before: BaseModel, now: BaseModel) -> str:
    """Return the settings that a resume changes, such as "stages.hq.steps from 20 to 25"; "" without any."""
    changes = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    shown = (f"{name} from {_show(a)} to {_show(b)}" for name, (a, b) in changes.items() if name != "out")
    return ", ".join(shown)


def _show(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)


def repair_settings(out: Path, part: str, note: Note) -> None:
    """Restore saved settings that are missing or damaged from the newest checkpoint with a copy of them.

    The damaged file is kept under another name, because a person may have written it.

    Raises:
        LuminaError: if it is damaged and no checkpoint has a copy.
    """
    path = settings_file(out, part)
    if not path.exists() and not (out / "checkpoints").is_dir() and not (out / f"{part}.pt").is_file():
        return
    schema = import_module(PARTS.load(part).__module__).SCHEMA
    reason = _find_fault(path, schema)
    if reason is None:
        return
    settings = _saved_copy(out) if part == "transformer" else _copy_in_state(out / f"{part}.pt", schema)
    if settings is None:
        if not path.exists():
            return  # the callers report a folder without a run
        raise LuminaError(
            f"{path} is damaged ({reason}) and no checkpoint has a copy; repair it, or delete it and name "
            f"the recipe of the run, as in `lumina train {packaged_recipe(part)} out={out} --resume`"
        )
    aside = path.with_name(f"{path.name}.damaged")
    with disk_errors(path):
        if path.exists():
            path.replace(aside)
        with atomic_write(path) as temporary:
            text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")
    kept = f"; the damaged file is now {aside.name}" if aside.exists() else ""
    note(f"{path} is damaged ({reason}): restored from the newest checkpoint{kept}")


def _find_fault(path: Path, schema: type) -> str | None:
    """Return why a saved recipe cannot be used, or None."""
    if not path.exists():
        return "missing"
    try:
        load_recipe(path, schema)
    except LuminaError as error:
        return str(error)
    named = any(line.startswith("part:") for line in path.read_text(encoding="utf-8").splitlines())
    return None if named else "it does not name a part"


def _saved_copy(out: Path) -> Recipe | None:
    """Return the settings in the newest checkpoint that has undamaged ones."""
    for state in sorted(out.glob("checkpoints/[0-9]*/state.json"), reverse=True):
        if find_damage(state.parent, [state.name]) is None and (found := parse_settings(_read(state))):
            return found
    return None


def _copy_in_state(path: Path, schema: type[BaseModel]) -> BaseModel | None:
    """Return the settings in the state file of a nano component; None if it has none."""
    from lumina_cli.core.training.progress import previous_state, read_state

    for each in (path, previous_state(path)):
        try:
            return schema.model_validate(read_state(each)["settings"], strict=False)
        except (LuminaError, KeyError, ValueError):
            continue
    return None


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_settings(state: dict) -> Recipe | None:
    """Return the settings in the state of a checkpoint; None if it has none, as in earlier releases."""
    try:
        return Recipe.model_validate(state["recipe"])
    except (KeyError, ValueError):
        return None

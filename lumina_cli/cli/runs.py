"""Run folders of `lumina train`: saved settings, the plan of a dry run, the note on a finished run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina_cli.cli import output
from lumina_cli.core.errors import LuminaError, UsageError


class PartSchema:
    """A schema that reads only the `part` of a recipe; the schema of that part then validates all of it."""

    @staticmethod
    def model_validate(values: dict, **options: Any) -> str:
        return str(values.get("part", "transformer"))


def find_saved_recipe(out: str | None, resume: bool) -> Path:
    """Return the file with the settings of the run in `out`, which replaces the recipe on a resume.

    Raises:
        UsageError: if the command does not resume a run, or `out` holds several.
        LuminaError: if `out` does not hold a run.
    """
    from lumina_cli.core.recipe import packaged_recipes
    from lumina_cli.core.registry import PARTS
    from lumina_cli.core.training.resume import settings_file

    if resume and not out:
        raise UsageError("--resume needs out=FOLDER, the run to resume")
    if not resume:
        known = ", ".join(name for name in packaged_recipes() if not name.startswith("sample/"))
        raise UsageError(f"no recipe given; try `lumina train nano`. Packaged recipes: {known}")
    saved = [path for path in (settings_file(Path(out), part) for part in PARTS) if path.is_file()]
    if not saved:
        raise LuminaError(f"{out} has no run to resume; start one with a recipe, without --resume")
    if len(saved) > 1:  # nano's small components share one folder
        raise UsageError(f"{out} has several runs ({', '.join(p.stem for p in saved)}); name the recipe too")
    return saved[0]


def resolve_resumed_settings(settings: Any, recipes: list[str], out: Path, overrides: list[str]) -> Any:
    """Return the settings to resume with; print a note if they differ from those of the recipe."""
    from lumina_cli.core.training.resume import resumed_settings, settings_file

    recipe = recipes[0] if recipes else None
    settings, differences = resumed_settings(settings, recipe, out, overrides)
    if differences:
        path = settings_file(out, settings.part)
        output.write_note(f"resuming with {path}, which differs from {recipe} in {', '.join(differences)}")
    return settings


def plan_training(settings: Any, out: Path, resume: bool, stage: str) -> list[dict]:
    """Return one row per stage that would be trained.

    Raises:
        LuminaError: in the same cases as the training itself, as far as they are known before it starts.
    """
    if settings.part != "transformer":
        from lumina_cli.core.training.progress import check_state

        if resume:
            check_state(out / f"{settings.part}.pt")
        return [{**settings.model_dump(mode="json"), "out": str(out)}]
    from lumina_cli.core.training.loop import pending_stages

    rows = pending_stages(settings, out, resume, stage)
    if rows:
        _check_data(settings.data)
    else:
        _note_completed(out)
    return [{**row, "out": str(out)} for row in rows]


def _check_data(source: str) -> None:
    """Read the first row of a source on disk; of a rendered or remote source, parse the settings only."""
    from lumina_cli.core.sources.settings import split_place
    from lumina_cli.core.sources.source import read_source

    rows = read_source(source)
    if os.path.exists(split_place(source)[0]):
        next(rows, None)


def note_if_completed(rows: Iterator[dict], out: Path) -> Iterator[dict]:
    """Yield the rows of a training; print a note if every stage was already complete."""
    trained = False
    with contextlib.closing(rows):
        for row in rows:
            trained = trained or "loss" in row
            yield row
    if not trained:
        _note_completed(out)


def _note_completed(out: Path) -> None:
    output.write_note(f"nothing left to train in {out}: training is complete; raise the steps to continue")

"""Run folders of `lumina train`: saved settings, the plan of a dry run, the note on a finished run."""

import contextlib
import itertools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina_cli.cli import output
from lumina_cli.core.errors import LuminaError, UsageError

FIRST_ROWS = 256  # of the data, which a dry run checks


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
    from lumina_cli.core.training.resume import repair_settings, settings_file

    if resume and not out:
        raise UsageError("--resume needs out=FOLDER, the run to resume")
    if not resume:
        known = ", ".join(name for name in packaged_recipes() if not name.startswith("sample/"))
        raise UsageError(f"no recipe given; try `lumina train nano`. Packaged recipes: {known}")
    for part in PARTS:
        repair_settings(Path(out), part, output.write_note)
    saved = [path for path in (settings_file(Path(out), part) for part in PARTS) if path.is_file()]
    if not saved:
        raise LuminaError(f"{out} has no run to resume; start one with a recipe, without --resume")
    if len(saved) > 1:  # nano's small components share one folder
        raise UsageError(f"{out} has several runs ({', '.join(p.stem for p in saved)}); name the recipe too")
    return saved[0]


def load_settings(recipe: str | Path, schema: type, overrides: list[str]) -> Any:
    """Return the settings of a recipe; relative paths in it are also relative to its own folder.

    Raises:
        UsageError: as `load_recipe`.
    """
    from lumina_cli.core.recipe import find_recipe, load_recipe
    from lumina_cli.core.training.config import absolute_paths

    return absolute_paths(load_recipe(recipe, schema, overrides), find_recipe(recipe).parent)


def resolve_resumed_settings(settings: Any, recipes: list[str], out: Path, overrides: list[str]) -> Any:
    """Return the settings to resume with; print a note if they differ from those of the recipe."""
    from lumina_cli.core.training.resume import (
        describe_changes,
        repair_settings,
        resumed_settings,
        settings_file,
    )

    recipe = recipes[0] if recipes else None
    repair_settings(out, settings.part, output.write_note)
    settings, before, differences = resumed_settings(settings, recipe, out, overrides)
    if differences:
        path = settings_file(out, settings.part)
        output.write_note(f"resuming with {path}, which differs from {recipe} in {', '.join(differences)}")
    changes = describe_changes(before, settings)
    if changes and settings.part != "transformer":  # its checkpoints contain the settings to compare with
        schedule = "; the learning rate continues on the schedule of the new steps" * ("steps" in changes)
        output.write_note(f"resuming with changed settings: {changes}{schedule}")
    return settings


def select_stage(settings: Any, stage: str | None) -> Any:
    """Return the settings with the stage that `--stage` names, if it is given.

    Raises:
        UsageError: if the part or the recipe does not have the stage.
    """
    if stage is None:
        return settings
    if settings.part != "transformer":
        if stage == "all":
            return settings
        raise UsageError(f"--stage {stage}: the part {settings.part} has no stages")
    settings.select_stages(stage)
    return settings.model_copy(update={"stage": stage})


@contextlib.contextmanager
def locked(out: Path, part: str) -> Iterator[None]:
    """Keep other processes from training in a run folder during the block.

    Raises:
        LuminaError: if another process is training in it.
    """
    from lumina_cli.core.weights.run_folder import RunFolder

    with contextlib.nullcontext() if part == "transformer" else RunFolder(out).locked():
        yield  # the training of a transformer locks its folder itself


@contextlib.contextmanager
def resume_hint(out: Path, settings: Any, resume: bool) -> Iterator[None]:
    """Name the way to resume when the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        from lumina_cli.core.training.resume import packaged_recipe, settings_file

        # with --resume, the saved settings may still be those before the new overrides
        saved = not resume and settings_file(out, settings.part).exists()
        name = "" if settings.part == "transformer" else f"{packaged_recipe(settings.part)} "
        way = f"resume with `lumina train {name}out={shlex.quote(str(out))} --resume`"
        output.hints.append(way if saved else "rerun the same command to resume")
        raise


def plan_training(settings: Any, out: Path, resume: bool) -> list[dict]:
    """Return one row per stage that would be trained.

    Raises:
        LuminaError: in the same cases as the training itself, as far as they are known before it starts.
    """
    if settings.part != "transformer":
        from lumina_cli.core.training.progress import check_state

        if resume:
            check_state(out / f"{settings.part}.pt")
        return [{**settings.model_dump(mode="json"), "out": str(out)}]
    from lumina_cli.core.training.resume_point import pending_stages

    rows = pending_stages(settings, out, resume, note=output.write_note, check_data=_check_data)
    if not rows:
        _note_completed(out, settings)
    return [{**row, "out": str(out)} for row in rows]


def _check_data(source: str) -> None:
    """Check the first rows of a source on disk; of a rendered or remote source, parse the settings only."""
    from lumina_cli.core.dataset.latent_cache import check_captions
    from lumina_cli.core.sources.settings import split_place
    from lumina_cli.core.sources.source import read_source

    rows = read_source(source)
    if os.path.exists(split_place(source)[0]):
        check_captions(list(itertools.islice(rows, FIRST_ROWS)), 0)


def note_if_completed(rows: Iterator[dict], out: Path, settings: Any) -> Iterator[dict]:
    """Yield the rows of a training; print a note if every selected stage was already complete."""
    trained = False
    with contextlib.closing(rows):
        for row in rows:
            trained = trained or "loss" in row
            if row.get("phase") == "resume" and "why" in row:
                output.write_note(row["why"])
            yield row
    if not trained:
        _note_completed(out, settings)


def _note_completed(out: Path, settings: Any) -> None:
    if getattr(settings, "stage", "all") == "all":
        text = "training is complete; raise the steps to continue"
    else:
        text = f"stage {settings.stage} is complete; for other stages add `--stage all`, or raise its steps"
    output.write_note(f"nothing left to train in {out}: {text}")

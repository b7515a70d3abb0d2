"""What `lumina train` knows of a run before and while it trains: its recipe, its plan, and its end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina_cli.cli import output
from lumina_cli.core.errors import LuminaError, UsageError


class Part:
    """Reads nothing but which part a recipe is for; that part's own schema then reads it all."""

    @staticmethod
    def model_validate(values: dict, **options: Any) -> str:
        return str(values.get("part", "transformer"))


def saved_recipe(out: str | None, resume: bool) -> Path:
    """Return the settings that the run in `out` was started with; they stand in for a recipe on a resume."""
    from lumina_cli.core.recipe import packaged_recipes
    from lumina_cli.core.registry import PARTS
    from lumina_cli.core.training.resume import settings_file

    if not (out and resume):
        known = ", ".join(name for name in packaged_recipes() if not name.startswith("sample/"))
        raise UsageError(f"give a recipe, such as `lumina train nano`; recipes: {known}")
    saved = [path for path in (settings_file(Path(out), part) for part in PARTS) if path.is_file()]
    if not saved:
        raise LuminaError(f"{out} has no run to resume; start one with a recipe, without --resume")
    if len(saved) > 1:  # nano's small parts share one folder
        raise UsageError(f"{out} has several runs ({', '.join(p.stem for p in saved)}); give the recipe too")
    return saved[0]


def resume_recipe(settings: Any, recipes: list[str], out: Path, overrides: list[str]) -> Any:
    """Return the settings to go on with, and say where they differ from those of the recipe."""
    from lumina_cli.core.training.resume import resumed_settings, settings_file

    named = recipes[0] if recipes else None
    settings, others = resumed_settings(settings, named, out, overrides)
    if others:
        path = settings_file(out, settings.part)
        output.note(f"going on with {path}, which differs from {named} in {', '.join(others)}")
    return settings


def plan(settings: Any, out: Path, resume: bool, stage: str) -> list[dict]:
    """Return what would be trained, a row per stage; refuses what the training itself would refuse."""
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
        _note_done(out)
    return [{**row, "out": str(out)} for row in rows]


def _check_data(source: str) -> None:
    """Read the first row of files; what is rendered or fetched only has its settings read."""
    from lumina_cli.core.sources.source import read_source

    rows = read_source(source)
    if Path(source).exists():
        next(rows, None)


def noted(rows: Iterator[dict], out: Path) -> Iterator[dict]:
    """Yield the rows of a training, and say so if it had nothing left to do."""
    trained = False
    with contextlib.closing(rows):
        for row in rows:
            trained = trained or "loss" in row
            yield row
    if not trained:
        _note_done(out)


def _note_done(out: Path) -> None:
    output.note(f"nothing left to train: {out} has done all its steps; set more of them to go on")

"""Where a run continues: its newest whole checkpoint, and the stages that remain to be trained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.components import find_components, find_transformer
from lumina_cli.core.models.layout import is_verified
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.recipe import load_recipe
from lumina_cli.core.registry import MODELS
from lumina_cli.core.training.config import Recipe, absolute_paths
from lumina_cli.core.training.optim import learning_rate
from lumina_cli.core.training.resume import describe_changes, parse_settings
from lumina_cli.core.training.trainer import TOKEN_SIDE, stage_shift
from lumina_cli.core.weights.checksums import find_damage, read_checksums
from lumina_cli.core.weights.run_folder import DAMAGED, RunFolder

SCHEDULE = ("steps", "lr", "warmup", "decay")  # settings of a stage that determine its learning rates


@dataclass
class ResumePoint:
    """Where a run continues.

    state    of the newest whole checkpoint; None without one
    pending  (stage, first step) of each stage to train
    damaged  step -> reason, of the damaged checkpoints after it
    notes    about damaged checkpoints, one line each
    changes  about settings that the resume changes, one line each: true once the run has opened with them
    fresh    whether the run starts, and no saved settings are resumed
    """

    state: dict[str, Any] | None
    pending: list[tuple[str, int]]
    damaged: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    fresh: bool = False


def find_resume_point(run: RunFolder, recipe: Recipe, resume: bool) -> ResumePoint:
    """Return where a run continues with the stages that `recipe.stage` selects.

    Raises:
        UsageError: if the recipe does not have the stage.
        LuminaError: if there is nothing to resume, if a checkpoint exists and `resume` is False, if all
            checkpoints are damaged, or if an earlier stage is not finished.
    """
    names, steps = recipe.select_stages(), run.steps()
    if not steps:
        if resume and not run.recipe.exists():
            raise LuminaError(f"{run.path} has no run to resume; start one without --resume")
        return ResumePoint(None, [(name, 0) for name in names], fresh=not resume)
    if not resume and recipe.stage == "all":
        raise LuminaError(_existing_run(run))
    state, damaged = run.newest_whole()
    if state is None:
        raise LuminaError(_all_damaged(run, damaged))
    pending = _pending_stages(run, recipe, state, names, resume)
    notes = [_describe_damage(run, state, damaged)] if damaged else []
    return ResumePoint(state, pending, damaged, notes, _describe_resume(run, recipe, state))


def _pending_stages(
    run: RunFolder, recipe: Recipe, state: dict, names: list[str], resume: bool
) -> list[tuple[str, int]]:
    """Return (stage, first step) of each stage of `names` that remains."""
    order = list(recipe.stages)
    if state["stage"] not in order:
        raise LuminaError(f"{run.path} stopped in stage {state['stage']}, which the recipe does not have")
    finished = state["stage_step"] >= recipe.stages[state["stage"]].steps
    remaining = order[order.index(state["stage"]) + finished :]
    pending = [
        (name, state["stage_step"] if name == state["stage"] else 0) for name in remaining if name in names
    ]
    # A finished stage may be followed by another one without --resume, so that `--stage` can run them singly.
    if not resume and not (finished and pending):
        raise LuminaError(_existing_run(run))
    if pending and pending[0][0] != remaining[0]:
        name = remaining[0]
        raise LuminaError(
            f"{run.path} has not finished stage {name}; finish it with "
            f"`lumina train out={run.path} --stage {name} --resume`"
        )
    return pending


def _existing_run(run: RunFolder) -> str:
    return (
        f"{run.path} contains checkpoints up to step {run.steps()[-1]}; "
        "resume it with --resume, or choose a different out="
    )


def _describe_damage(run: RunFolder, state: dict, damaged: dict[int, str]) -> str:
    names = ", ".join(f"{run.folder_of(step).name} ({reason})" for step, reason in damaged.items())
    return (
        f"damaged in {run.checkpoints}: {names}; resuming from {run.folder_of(state['step']).name}; "
        f"a damaged checkpoint is renamed to end in {DAMAGED}"
    )


def _all_damaged(run: RunFolder, damaged: dict[int, str]) -> str:
    names = ", ".join(f"{run.folder_of(step)} ({reason})" for step, reason in damaged.items())
    recipe = run.recipe if run.recipe.is_file() else "nano"
    start = f"`lumina train {recipe} out={run.path}-2"
    remedy = f"start again with {start}`"
    if find_model_damage(run) is None:
        remedy = f"train on from the exported model with {start} model={run.path / 'model'}`"
    return f"no whole checkpoint; damaged: {names}; {remedy}"


def find_model_damage(run: RunFolder) -> str | None:
    """Return what is missing or damaged in the exported model of a run, or None."""
    folder = run.path / "model"
    names = read_checksums(folder) or {"transformer/config.json": ""}
    if not folder.is_dir():
        return "model is missing"
    reason = find_damage(folder, [name for name in names if is_verified(folder, name, most=None)])
    return reason and f"{folder}: {reason}"


def _describe_resume(run: RunFolder, recipe: Recipe, state: dict) -> list[str]:
    """Return what changes with the settings of `recipe`, compared with those of the checkpoint."""
    before = parse_settings(state) or read_saved(run)
    if before is None:
        return []
    before, notes = absolute_paths(before), []
    if changes := describe_changes(before, recipe):
        notes.append(f"resuming at step {state['step']} with changed settings: {changes}")
    name, done = state["stage"], state["stage_step"]
    for earlier in list(recipe.stages)[: list(recipe.stages).index(name)]:
        if before.stages.get(earlier) != recipe.stages[earlier]:
            notes.append(f"stage {earlier} is already trained; its changed settings have no effect")
    old, new = before.stages.get(name), recipe.stages[name]
    changed = old is not None and any(getattr(old, key) != getattr(new, key) for key in SCHEDULE)
    if old is not None and changed and 0 < done < new.steps:
        notes.append(
            f"stage {name} continues after step {done} on the schedule of {new.steps} steps, not of "
            f"{old.steps}: the learning rate was {learning_rate(old, min(done, old.steps) - 1):.3g} "
            f"and is now {learning_rate(new, done):.3g}"
        )
    return notes


def read_saved(run: RunFolder) -> Recipe | None:
    """Return the saved settings of a run; None if they are missing or damaged."""
    try:
        return load_recipe(run.recipe, Recipe)
    except LuminaError:
        return None


def describe_run(recipe: Recipe, stage: str | None = None) -> Iterator[dict]:
    """Yield a row of sizes and settings per stage, without training or reading data.

    Raises:
        UsageError: if the recipe does not have the stage.
    """
    parameters = None
    if recipe.model in NAMED:
        with torch.device("meta"):
            model = NextDiT(NextDiTConfig.named(recipe.model))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    for name in recipe.select_stages(stage):
        settings = recipe.stages[name]
        tokens = (settings.size // TOKEN_SIDE) ** 2
        row = {"stage": name, "model": recipe.model, "parameters": parameters, "data": recipe.data}
        row |= {"image_tokens": tokens, "pictures": settings.steps * settings.batch}
        yield row | settings.model_dump(mode="json") | {"shift": round(stage_shift(settings), 4)}


def pending_stages(
    recipe: Recipe,
    out: Path,
    resume: bool,
    stage: str | None = None,
    note: Callable[[str], None] = lambda text: None,
    check_data: Callable[[str], None] = lambda source: None,
) -> list[dict]:
    """Return the rows of `describe_run` for the stages that remain to be trained.

    `stage` and `note` are those of `train_transformer`; `check_data` raises if the data cannot be used.

    Raises:
        UsageError, LuminaError: as `train_transformer` would, as far as that is known without reading data.
    """
    recipe = absolute_paths(recipe.model_copy(update={"stage": stage or recipe.stage}))
    point = find_resume_point(RunFolder(out, recipe.keep), recipe, resume)
    for line in point.notes:
        note(line)
    if recipe.frozen not in MODELS:  # locating a named model may start a download
        find_components(recipe.frozen)
    if recipe.model not in NAMED:
        find_transformer(recipe.model)
    if point.pending:
        check_data(recipe.data)
    for line in point.changes:
        note(line)
    return [row for row in describe_run(recipe) if row["stage"] in dict(point.pending)]

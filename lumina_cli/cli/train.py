"""`lumina train`: train a model from a recipe."""

import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output, runs
from lumina_cli.cli.options import Allow, Json, note_missing_values
from lumina_cli.core.errors import UsageError


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="Recipe, by name or path, then settings such as out=runs/first or stages.hq.steps=200.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Stage to train: low, high, hq or all. Default: all; with --resume, that of the run."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the run in out= with its own settings; KEY=VALUE overrides them."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the stages that would be trained, and exit.")
    ] = False,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Train a model from a recipe. Writes rows of metrics to stdout.

    KEY=VALUE overrides a setting of the recipe. The model, its checkpoints and the resolved settings are
    written to out=FOLDER. To start from trained weights, pass model=FOLDER; a name, such as model=nano, means
    random weights of that size.

    Examples:

        lumina train nano out=runs/first
        lumina train nano out=runs/first data=shards stages.hq.steps=200
        lumina train out=runs/first --resume
        lumina train nano --stage low --dry-run
    """
    from lumina_cli.core.recipe import load_recipe
    from lumina_cli.core.registry import PARTS

    if os.environ.get("WORLD_SIZE", "1") != "1":  # set by torchrun: each process would train all of it
        raise UsageError("training in several processes is not supported yet; start one, without torchrun")
    recipes, overrides, out = _parse_words(words or [])
    recipe = recipes[0] if recipes else runs.find_saved_recipe(out, resume)
    output.show_status(f"loading the recipe {recipe}")
    part = load_recipe(recipe, runs.PartSchema, overrides)
    trainer = PARTS.load(part)
    settings = runs.load_settings(recipe, import_module(trainer.__module__).SCHEMA, overrides)
    out = Path(out or getattr(settings, "out", None) or Path("runs") / Path(recipe).stem)
    if resume:
        settings = runs.resolve_resumed_settings(settings, recipes, out, overrides)
    settings = runs.select_stage(settings, stage)
    if getattr(settings, "data", None):
        note_missing_values(settings.data, encodings=True)
    if dry_run:
        output.write_rows(runs.plan_training(settings, out, resume), json, label="stages")
        return
    from lumina_cli.core.training.progress import describer

    counter = output.ProgressCounter()
    with runs.resume_hint(out, settings, resume), runs.locked(out, part):
        metrics = trainer(settings, out, resume=resume, **_dependencies(part, counter))
        rows = runs.note_if_completed(metrics, out, settings)
        output.write_rows(rows, json, label="training", total=counter, describe=describer(settings))


def _parse_words(words: list[str]) -> tuple[list[str], list[str], str | None]:
    """Return (recipe or nothing, settings, value of out=) of the arguments."""
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(f"expected one recipe, not {' and '.join(recipes)}; settings are written name=value")
    overrides = [word for word in words if "=" in word and not word.startswith("out=")]
    return recipes, overrides, next((word[4:] for word in words if word.startswith("out=")), None)


def _dependencies(part: str, counter: output.ProgressCounter) -> dict:
    """Return what the trainer of a part needs from other packages, which it may not import itself."""
    if part == "transformer":
        from lumina_cli.core.dataset.training_data import TrainingData

        open_data = partial(TrainingData, notify=output.write_note)
        return {"open_data": open_data, "note": output.write_note, "progress": counter}
    if part == "captioner":
        from lumina_cli.core.training.nano.caption_batches import PromptSet
        from lumina_cli.core.unicap.checks.rules import check_caption
        from lumina_cli.core.unicap.prompts import instruction
        from lumina_cli.core.unicap.structured import rewriting

        prompts = PromptSet(instruction, rewriting, lambda *caption: check_caption(*caption) is None)
        return {"prompts": prompts}
    return {}

"""`lumina train`: a recipe in, rows of metrics and a model folder out."""

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output, runs


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", help="A recipe by name or path, then settings: out=runs/a"
        ),
    ] = None,
    stage: Annotated[str, typer.Option(help="low, high, hq, or all of the recipe's stages.")] = "all",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where the run in out= stopped, with its settings; KEY=VALUE changes them."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")] = False,
) -> None:
    """Train a model from a recipe. A row of metrics every few steps out, and a model folder in out=.

    Any setting can follow the recipe: lumina train nano out=runs/a data=shards stages.hq.steps=200
    """
    from lumina_cli.core.errors import UsageError
    from lumina_cli.core.recipe import load_recipe
    from lumina_cli.core.registry import PARTS

    if os.environ.get("WORLD_SIZE", "1") != "1":  # set by torchrun: each process would train it all
        raise UsageError("training in several processes is not supported yet; start one, without torchrun")
    recipes = [word for word in words or [] if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(
            f"one recipe at a time, not {' and '.join(recipes)}; settings are written name=value"
        )
    overrides = [word for word in words or [] if "=" in word and not word.startswith("out=")]
    out = next((word[4:] for word in words or [] if word.startswith("out=")), None)
    recipe = recipes[0] if recipes else runs.saved_recipe(out, resume)
    part = load_recipe(recipe, runs.Part, overrides)
    trainer = PARTS.load(part)
    module = import_module(trainer.__module__)
    settings = load_recipe(recipe, module.SCHEMA, overrides)
    out = Path(out or getattr(settings, "out", None) or Path("runs") / Path(recipe).stem)
    if resume:
        settings = runs.resume_recipe(settings, recipes, out, overrides)
    extra = _handed(part, stage)
    if stage != "all" and part != "transformer":
        raise UsageError(f"the part {part} has no stages; leave --stage out")
    if dry_run:
        rows = runs.plan(settings, out, resume, stage)
        output.write_rows(rows, json, label="stages")
    else:
        from lumina_cli.core.training.progress import describer

        rows = runs.noted(trainer(settings, out, resume=resume, **extra), out)
        output.write_rows(rows, json, label="training", describe=describer(settings, stage))


def _handed(part: str, stage: str) -> dict:
    """Return what the trainer of a part is given of other stages."""
    if part == "transformer":
        from lumina_cli.core.dataset.training_data import TrainingData

        return {"stage": stage, "open_data": TrainingData}
    if part == "captioner":
        from lumina_cli.core.training.nano.caption_batches import PromptSet
        from lumina_cli.core.unicap.checks.rules import check_caption
        from lumina_cli.core.unicap.prompts import instruction
        from lumina_cli.core.unicap.structured import rewriting

        prompts = PromptSet(instruction, rewriting, lambda *caption: check_caption(*caption) is None)
        return {"prompts": prompts}
    return {}

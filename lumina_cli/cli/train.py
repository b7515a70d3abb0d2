"""`lumina train`: a recipe in, rows of metrics and a model folder out."""

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from lumina_cli.cli import output


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
    """Train a model from a recipe: a row of metrics every few steps out, and a model folder in out=.

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
    recipe = recipes[0] if recipes else "nano"
    overrides = [word for word in words or [] if "=" in word and not word.startswith("out=")]
    part = load_recipe(recipe, _Part, overrides)
    trainer = PARTS.load(part)
    module = import_module(trainer.__module__)
    settings = load_recipe(recipe, module.SCHEMA, overrides)
    out = next((word[4:] for word in words or [] if word.startswith("out=")), None)
    out = Path(out or getattr(settings, "out", None) or Path("runs") / Path(recipe).stem)
    if resume:
        settings = _resumed(settings, recipes, out, overrides)
    extra = _of_transformer(stage) if part == "transformer" else {}
    if stage != "all" and not extra:
        raise UsageError(f"the part {part} has no stages; leave --stage out")
    if dry_run:
        output.write_rows(_describe(module, settings, out, stage), json, label="stages")
    else:
        output.write_rows(trainer(settings, out, resume=resume, **extra), json, label="metrics")


class _Part:
    """Reads nothing but which part a recipe is for; that part's own schema then reads it all."""

    @staticmethod
    def model_validate(values: dict, **options: Any) -> str:
        return str(values.get("part", "transformer"))


def _resumed(settings: Any, recipes: list[str], out: Path, overrides: list[str]) -> Any:
    from lumina_cli.core.training.resume import resumed_settings, settings_file

    named = recipes[0] if recipes else None
    settings, others = resumed_settings(settings, named, out, overrides)
    if others:
        path = settings_file(out, settings.part)
        output.note(f"going on with {path}, which differs from {named} in {', '.join(others)}")
    return settings


def _of_transformer(stage: str) -> dict:
    from lumina_cli.core.data.loader import TrainingData

    return {"stage": stage, "open_data": TrainingData}


def _describe(module: Any, settings: Any, out: Path, stage: str) -> list[dict]:
    if hasattr(module, "describe"):
        return [{**row, "out": str(out)} for row in module.describe(settings, stage)]
    return [{**settings.model_dump(mode="json"), "out": str(out)}]

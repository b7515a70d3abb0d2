"""`lumina bench teacache`: calibrate TeaCache for a model."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json


def teacache(
    model: Annotated[str, typer.Option(help="Model: a name, a model or run folder, or a hub id.")] = "nano",
    prompts: Annotated[int, typer.Option(min=1, help="Number of nano captions used as prompts.")] = 24,
    preset: Annotated[
        list[str] | None, typer.Option(help="Calibrate under this sampling preset too. Repeatable.")
    ] = None,
    plan: Annotated[
        str, typer.Option(help="Further sampling settings for every plan, e.g. shift=3, or a JSON file.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write to. Default: the model folder.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images generated at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed of captions and noise.")] = 0,
    json: Json = False,
) -> None:
    """Calibrate TeaCache for a model. A model in, rows of errors and a teacache.json out.

    The error is measured at several thresholds. `lumina sample --cache tea:THRESHOLD` uses the file.

    Examples:

        lumina bench teacache --model nano --preset fast
        lumina bench teacache --model runs/first --prompts 64 --out teacache.json
    """
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.sampling.pipeline import load_pipeline
    from lumina_cli.core.sampling.teacache.calibrate import fit_teacache, scene_prompts

    settings = read_settings(plan)
    pipeline = load_pipeline(model)
    plans = [pipeline.plan_for(settings, name) for name in (None, *(preset or ()))]
    rows = fit_teacache(pipeline, scene_prompts(prompts, seed), plans, out, batch=batch, seed=seed)
    output.write_rows(rows, json=json or None, label="rows")

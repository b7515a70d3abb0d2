"""`lumina bench teacache`: a cache fitted to a model."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output


def teacache(
    model: Annotated[str, typer.Option(help="A name, a model or run folder, or a hub id.")] = "nano",
    prompts: Annotated[int, typer.Option(min=1, help="How many captions to draw.")] = 24,
    preset: Annotated[
        list[str] | None, typer.Option(help="Fit and measure under this preset, too; may be repeated.")
    ] = None,
    plan: Annotated[
        str, typer.Option(help="Over the model's own plan and the presets: shift=3; or a JSON file.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="File or folder to write to; beside the model.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the captions and the noise.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Fit TeaCache to a model, measure its error at several thresholds, and write teacache.json beside it.

    lumina bench teacache --model nano --preset fast
    """
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.sampling.pipeline import load_pipeline
    from lumina_cli.core.sampling.teacache.calibrate import fit_teacache, scene_prompts

    settings = read_settings(plan)
    pipeline = load_pipeline(model)
    plans = [pipeline.plan_for(settings, name) for name in (None, *(preset or ()))]
    rows = fit_teacache(pipeline, scene_prompts(prompts, seed), plans, out, batch=batch, seed=seed)
    output.write_rows(rows, json=json or None, label="rows")

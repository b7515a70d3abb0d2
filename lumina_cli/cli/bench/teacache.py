"""`lumina bench teacache`: calibrate TeaCache for a model."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json, read_rows
from lumina_cli.core.errors import LuminaError, UsageError


def teacache(
    model: Annotated[str, typer.Option(help="Model: a name, a model or run folder, or a hub id.")] = "nano",
    prompts: Annotated[
        str, typer.Option(help="Number of nano captions, or a file of prompts (.txt, .jsonl, .csv).")
    ] = "24",
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
    """Calibrate TeaCache for a model. Writes teacache.json and, to stdout, rows of errors.

    The error is measured at several thresholds. `lumina sample --cache tea:THRESHOLD` uses teacache.json.

    Examples:

        lumina bench teacache --model nano --preset fast
        lumina bench teacache --model lumina-image-2 --prompts prompts.txt --out teacache.json
    """
    output.show_status(f"loading {model}")
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.sampling.pipeline import load_pipeline
    from lumina_cli.core.sampling.teacache.calibrate import fit_teacache

    settings = read_settings(plan)
    texts = _read_prompts(prompts, seed)
    pipeline = load_pipeline(model)
    plans = [pipeline.plan_for(settings, name) for name in (None, *(preset or ()))]
    rows = fit_teacache(pipeline, texts, plans, out, batch=batch, seed=seed)
    output.write_rows(rows, json=json or None, label="rows")


def _read_prompts(prompts: str, seed: int) -> list[str]:
    """Return the captions of so many nano scenes, or the prompts of a file of rows.

    Raises:
        UsageError: if it is a number below 1.
        LuminaError: if the file does not exist or a row has no prompt.
    """
    from lumina_cli.core.sampling.teacache.calibrate import scene_prompts

    if prompts.lstrip("-").isdecimal():
        if int(prompts) < 1:
            raise UsageError(f"--prompts must be a number of at least 1, or a file of prompts, not {prompts}")
        return scene_prompts(int(prompts), seed)
    if not Path(prompts).is_file():
        raise LuminaError(f"{prompts}: no such file of prompts")
    return [row["prompt"] for row in read_rows([prompts], key="prompt")]

"""`lumina bench sample`: end-to-end image generation against diffusers' pipeline."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json


def sample(
    model: Annotated[str, typer.Option(help="Model: a name, a model or run folder, or a hub id.")] = "nano",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset: official, diffusers, comfyui, fast or a YAML file. Default: the model's own."
        ),
    ] = None,
    plan: Annotated[
        str, typer.Option(help="Further sampling settings, e.g. solver=euler,shift=3, or a JSON file.")
    ] = "",
    calls: Annotated[
        int | None, typer.Option(help="Maximum number of network calls; cannot be combined with steps=.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Image size: 1024x768, 16:9... Default: the model's own size.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Images generated at once, of one prompt.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; both pipelines run in each.")] = 7,
    json: Json = False,
) -> None:
    """Benchmark end-to-end image generation against diffusers. Writes one row per pipeline.

    Both pipelines run from text to pixels on the same model folder; diffusers uses its default settings.

    Examples:

        lumina bench sample --model nano --preset official
        lumina bench sample --model nano --preset fast --pictures 4
    """
    output.show_status(f"loading {model}")
    from lumina_cli.core.bench.pipeline import compare_pipelines
    from lumina_cli.core.flow.plan import read_settings

    settings = read_settings(plan) | ({} if calls is None else {"calls": calls})
    rows = compare_pipelines(
        model, plan=settings, preset=preset, size=size, pictures=pictures, repeats=repeats
    )
    output.write_rows(rows, json=json or None, label="sides")

"""`lumina bench sample`: whole pictures against diffusers' pipeline."""

from typing import Annotated

import typer

from lumina_cli.cli import output


def sample(
    model: Annotated[str, typer.Option(help="A name, a model or run folder, or a hub id.")] = "nano",
    preset: Annotated[
        str | None,
        typer.Option(help="official, diffusers, comfyui, fast or a YAML file; the model's own plan."),
    ] = None,
    plan: Annotated[str, typer.Option(help="Over that: solver=euler,shift=3; or a JSON file.")] = "",
    calls: Annotated[int | None, typer.Option(help="A budget of network calls in place of steps.")] = None,
    size: Annotated[str | None, typer.Option(help="1024x768, 16:9...; the model's own size.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Of one prompt, drawn together.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the sides take turns.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Time whole pictures, text to pixels, against diffusers' pipeline at its defaults on the same folder.

    lumina bench sample --model nano --preset official
    """
    from lumina_cli.core.bench.pipeline import compare_pipelines
    from lumina_cli.core.flow.plan import read_settings

    settings = read_settings(plan) | ({} if calls is None else {"calls": calls})
    rows = compare_pipelines(
        model, plan=settings, preset=preset, size=size, pictures=pictures, repeats=repeats
    )
    output.write_rows(rows, json=json or None, label="sides")

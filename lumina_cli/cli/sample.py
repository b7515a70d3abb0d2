"""`lumina sample`: prompts in, pictures out."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.explain import show


def sample(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts, files of them (.txt, .jsonl, .csv), or '-' for stdin.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="nano, lumina-image-2, auto, a model or run folder, or a hub id.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    seed: Annotated[int, typer.Option(help="Any integer; the same seed draws the same picture.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Pictures for each prompt.")] = 1,
    size: Annotated[
        str | None, typer.Option(help="1024x768, 16:9, portrait, wide@512...; the model's own size.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="official, diffusers, comfyui, fast or a YAML file; the model's own plan."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver, as the preset counts them.")] = None,
    calls: Annotated[int | None, typer.Option(help="Instead of --steps: a budget of network calls.")] = None,
    guidance: Annotated[float | None, typer.Option(help="1 follows the prompt freely, 4 closely.")] = None,
    plan: Annotated[
        str, typer.Option(help="Any other setting: solver=euler,shift=3,renorm=off; or a JSON file.")
    ] = "",
    negative: Annotated[str, typer.Option(help="What guidance moves away from.")] = "",
    system: Annotated[
        str,
        typer.Option(
            help="System prompt, as text or by name: real, base, align, aesthetics, 4grid, dual-panel, "
            "two-panel, empty."
        ),
    ] = "real",
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures drawn at once.")] = None,
    format: Annotated[str, typer.Option(help="Of the pictures: png, webp, jpg or avif.")] = "png",
    shard: Annotated[
        str | None, typer.Option(help="I/N draws every N-th row from row I on, counted from 0.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw again what is already there.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Draw nothing: show the plan, each call, each text.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Draw a picture for each prompt: prompts in, rows with an image out.

    lumina sample "a red car left of a blue ball" --model nano --seed 7

    A row of a file may have its own "seed", "size" and "negative". Pictures that are already there, drawn in
    the same way, are not drawn again: a run that was interrupted goes on where it stopped.
    """
    rows, total = output.read_rows(prompts, key="prompt"), output.count_rows(prompts, key="prompt")
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.sampling import draw_rows, explain_rows, read_split

    flags = {"steps": steps, "calls": calls, "guidance": guidance}
    settings = read_settings(plan) | {name: value for name, value in flags.items() if value is not None}
    wishes = {"seed": seed, "count": count, "size": size, "plan": settings, "preset": preset}
    wishes |= {"system": system, "negative": negative}
    if explain:
        show(explain_rows(rows, model, **wishes), json)
        return
    split = read_split(shard, shared=total is None)
    meter = output.Meter(total and split.size(total) * count)
    drawn = draw_rows(
        rows, model, out, batch=batch, format=format, split=split, force=force, note=output.note,
        progress=meter, **wishes,
    )  # fmt: skip
    output.write_rows(drawn, json=json or None, label="pictures", total=meter)

"""`lumina sample`: prompts in, pictures out."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import SOLVERS


def sample(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts, files of them (.txt, .jsonl), or '-' for stdin.", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option(help="nano, lumina-image-2, auto, a model or run folder, or a hub id.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    seed: Annotated[int, typer.Option(help="Any integer; the same seed draws the same picture.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Pictures for each prompt.")] = 1,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own size.")] = None,
    solver: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(SOLVERS)}; the model's own plan.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver; the model's own plan.")] = None,
    shift: Annotated[
        float | None, typer.Option(help="Above 1: more of the steps near the noise; the model's own plan.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="1 follows the prompt freely, 4 closely.")] = None,
    guide_until: Annotated[
        float | None, typer.Option(help="Guide while the time, 0 to 1, is below this; 1 is always.")
    ] = None,
    renorm: Annotated[
        str | None, typer.Option(help="How many times longer guidance may make a step, or 'off'.")
    ] = None,
    system: Annotated[
        str, typer.Option(help="System prompt: real, base, align, aesthetics, 4grid, empty, or its text.")
    ] = "real",
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures drawn at once.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Draw a picture for each prompt: prompts in, rows with an image out.

    lumina sample "a red car left of a blue ball" --model nano --seed 7
    """
    rows = output.read_rows(prompts, key="prompt")
    from lumina_cli.core.sampling import draw_rows

    plan = {"solver": solver, "steps": steps, "shift": shift, "guidance": guidance}
    plan = {name: value for name, value in (plan | {"guide_until": guide_until}).items() if value is not None}
    if renorm is not None:
        plan["renorm"] = _ratio(renorm)
    drawn = draw_rows(
        rows,
        model,
        out,
        seed=seed,
        count=count,
        size=size,
        plan=plan,
        system=system,
        batch=batch,
        note=output.note,
    )
    output.write_rows(drawn, json=json or None, label="pictures")


def _ratio(renorm: str) -> float | None:
    """Return what follows --renorm as a number, or None for "off"."""
    if renorm == "off":
        return None
    try:
        return float(renorm)
    except ValueError:
        raise UsageError(f"--renorm is {renorm!r}, but must be a number above 0, or off") from None

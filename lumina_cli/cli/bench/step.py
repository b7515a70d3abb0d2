"""`lumina bench step`: one network call, or one guided step."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json


def step(
    model: Annotated[
        str,
        typer.Option(help="Model: nano, lumina-image-2 or another published size; or a model folder."),
    ] = "nano",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights of the size that --model names.")
    ] = False,
    size: Annotated[
        int, typer.Option(min=16, rich_help_panel="Workload", help="Side of the square image, in pixels.")
    ] = 256,
    guided: Annotated[
        bool,
        typer.Option(
            "--guided",
            rich_help_panel="Workload",
            help="Time a guided step: one call with two batch entries, two calls in diffusers.",
        ),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel="Implementations", help="Implementation to compare with: diffusers."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Implementations", help="Quantization of lumina's network: int8 or int8-weights."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel="Workload", help="Text tokens of the prompt.")
    ] = 128,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel="Measurement",
            help="Timed calls per implementation, after one warm-up call.",
        ),
    ] = 3,
    dtype: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Implementations",
            help="float32 or bfloat16. Default: the fastest that the CPU supports.",
        ),
    ] = None,
    error_size: Annotated[
        int | None,
        typer.Option(
            rich_help_panel="Measurement",
            help="Image side at which the error is measured. Default: --size, at most 256.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(rich_help_panel="Workload", help="Random seed of weights and inputs.")
    ] = 0,
    json: Json = False,
) -> None:
    """Time one network call on the CPU. Writes one row per implementation.

    Each row has seconds, the speed ratio, the error against float32, and the fraction of the call spent in
    matmuls.

    Examples:

        lumina bench step --model nano --against diffusers
        lumina bench step --model lumina-image-2 --random-weights --size 1024 --guided
    """
    output.show_status(f"loading {model}")
    from lumina_cli.core.bench.step import read_dtype, time_step

    rows = time_step(
        model,
        size,
        random_weights=random_weights,
        guided=guided,
        against=against or (),
        quantized=quantize,
        tokens=tokens,
        repeats=repeats,
        seed=seed,
        dtype=read_dtype(dtype),
        error_size=error_size,
    )
    output.write_rows(rows, json=json or None, label="sides")

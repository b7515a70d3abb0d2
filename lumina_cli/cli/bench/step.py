"""`lumina bench step`: one call of the network, or one guided step."""

from typing import Annotated

import typer

from lumina_cli.cli import output


def step(
    model: Annotated[
        str, typer.Option(help="nano, lumina-image-2 or another published size; or a model folder.")
    ] = "nano",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw the weights; the model is only a size then.")
    ] = False,
    size: Annotated[int, typer.Option(min=16, help="Pixels of a side.")] = 256,
    guided: Annotated[
        bool, typer.Option("--guided", help="A caption and the empty one: one call of ours, two of theirs.")
    ] = False,
    against: Annotated[list[str] | None, typer.Option(help="diffusers; may be left out.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int8-weights, for our side.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Text tokens of the caption.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns, after one that does not count.")] = 3,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; what the CPU does best.")] = None,
    error_size: Annotated[int | None, typer.Option(help="Pixels for the error; --size, at most 256.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and inputs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Time one call of the network on the CPU: seconds, ratio, error, share of its matrix products.

    lumina bench step --model lumina-image-2 --random-weights --size 1024 --against diffusers
    """
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

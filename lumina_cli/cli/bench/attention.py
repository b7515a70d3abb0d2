"""`lumina bench`: how fast, and how exact, on this machine."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.bench import captioners, pipeline, step, teacache, writers
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import KERNELS, did_you_mean

app = typer.Typer(no_args_is_help=True, help="Time the hot operations, each with its error beside its speed.")

DTYPES = ("float32", "bfloat16", "float16")


@app.callback()
def bench() -> None:
    """Time the hot operations, each with its error beside its speed."""


@app.command()
def attention(
    shape: Annotated[
        str,
        typer.Option(help="nano, lumina-image-2, or B,h,kv,L,d: pictures, heads, kv heads, tokens, width."),
    ] = "nano",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; what the device does best.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this implementation; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each implementation.")] = 20,
    padding: Annotated[int, typer.Option(min=0, help="Masked keys at the end of every other picture.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU if there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Compare implementations of attention: error against float64, milliseconds, and time relative to sdpa.

    lumina bench attention --shape lumina-image-2 --dtype bfloat16
    """
    import torch

    from lumina_cli.core.bench.kernels import compare
    from lumina_cli.core.device import compute_dtype, pick_device

    op = KERNELS.load("attention")
    sizes = _shape(shape, op.shapes)
    if padding >= sizes[3]:
        raise UsageError(f"--padding {padding} leaves no key of {sizes[3]}")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(
            f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES) or '; choose from ' + ', '.join(DTYPES)}"
        )
    where = pick_device(device)
    number = getattr(torch, dtype) if dtype else compute_dtype(where)
    inputs = op.inputs(sizes, number, where, seed, padding)
    about = {
        "shape": ",".join(map(str, sizes)),
        "dtype": str(number).removeprefix("torch."),
        "device": str(where),
    }
    rows = ({**row, **about} for row in compare(op, inputs, repeats, backend or ()))
    output.write_rows(rows, json=json, label="backends")


def _shape(text: str, named: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return (B, h, kv, L, d) of a name or of five numbers."""
    if text in named:
        return named[text]
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if len(numbers) != 5 or min(numbers) < 1:
        raise UsageError(
            f"unknown shape {text!r}; choose from {', '.join(named)}, or give B,h,kv,L,d as 2,24,8,512,96"
        )
    if numbers[1] % numbers[2]:
        raise UsageError(f"shape {text}: {numbers[1]} heads cannot share {numbers[2]} kv heads evenly")
    return tuple(numbers)


app.command("step")(step.step)
app.command("sample")(pipeline.sample)
app.command("data")(writers.data)
app.command("teacache")(teacache.teacache)
app.command("caption")(captioners.caption)

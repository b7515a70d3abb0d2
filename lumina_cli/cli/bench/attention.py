"""`lumina bench attention`: attention kernels, and the group of all benchmarks of speed."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.bench import captioners, pipeline, step, teacache, writers
from lumina_cli.cli.help import VerbApp
from lumina_cli.cli.options import Device, Json
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import KERNELS, did_you_mean

HELP = """Measure speed and numerical error on this machine.

Examples:

    lumina bench attention --shape lumina-image-2
    lumina bench sample --model nano
    lumina bench caption --engine noop
"""
DTYPES = ("float32", "bfloat16", "float16")

app = VerbApp(help=HELP)


@app.command()
def attention(
    shape: Annotated[
        str,
        typer.Option(
            help="Problem size: nano, lumina-image-2, or B,H,KV,L,D (batch, heads, KV heads, tokens, width)."
        ),
    ] = "nano",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16. Default: the fastest that the device supports."),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Measure only this implementation. Repeatable.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls per implementation.")] = 20,
    padding: Annotated[
        int, typer.Option(min=0, help="Masked keys at the end of every other batch entry.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Random seed of the inputs.")] = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare attention implementations. Writes one row per implementation.

    Each row has the error against float64, milliseconds, and the time relative to PyTorch's sdpa.

    Examples:

        lumina bench attention --shape lumina-image-2 --dtype bfloat16
        lumina bench attention --shape 2,24,8,512,96 --backend sdpa --backend direct
    """
    output.show_status("loading the implementations")
    import torch

    from lumina_cli.core.bench.kernels import compare
    from lumina_cli.core.device import compute_dtype, pick_device

    op = KERNELS.load("attention")
    sizes = _read_shape(shape, op.shapes)
    if padding >= sizes[3]:
        raise UsageError(f"--padding {padding} masks all {sizes[3]} keys")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(
            f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES) or '; choose from ' + ', '.join(DTYPES)}"
        )
    torch_device = pick_device(device)
    torch_dtype = getattr(torch, dtype) if dtype else compute_dtype(torch_device)
    inputs = op.inputs(sizes, torch_dtype, torch_device, seed, padding)
    settings = {
        "shape": ",".join(map(str, sizes)),
        "dtype": str(torch_dtype).removeprefix("torch."),
        "device": str(torch_device),
    }
    rows = ({**row, **settings} for row in compare(op, inputs, repeats, backend or ()))
    output.write_rows(rows, json=json, label="backends")


def _read_shape(text: str, named: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return (B, H, KV, L, D) from a name or from five numbers."""
    if text in named:
        return named[text]
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if len(numbers) != 5 or min(numbers) < 1:
        raise UsageError(
            f"unknown shape {text!r}; choose from {', '.join(named)}, or B,H,KV,L,D such as 2,24,8,512,96"
        )
    if numbers[1] % numbers[2]:
        raise UsageError(f"shape {text}: {numbers[1]} heads are not a multiple of {numbers[2]} KV heads")
    return tuple(numbers)


app.command("step")(step.step)
app.command("sample")(pipeline.sample)
app.command("data")(writers.data)
app.command("teacache")(teacache.teacache)
app.command("caption")(captioners.caption)

"""`lumina shard overlay | encode`: add fields to the samples of existing shards."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json, MaxBadRate, Shards, Workers
from lumina_cli.cli.shard.pack import app
from lumina_cli.core.errors import UsageError


@app.command()
def overlay(
    shards: Shards,
    rows: Annotated[
        str | None, typer.Argument(help="File of rows, or '-' for stdin; without it, overlays are listed.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the overlay.")] = "captions",
    add: Annotated[
        bool, typer.Option("--add", help="Keep the values of the newest version that ROWS do not set.")
    ] = False,
    remove: Annotated[
        str | None, typer.Option(help="Delete an overlay (NAME) or one version of it (NAME@0001).")
    ] = None,
    json: Json = False,
) -> None:
    """Add or replace captions, scores or other fields. Writes one row per shard and a summary row.

    The new values are stored as an overlay; shards are not rewritten. Every call adds a version of the
    overlay, and readers use the newest one.

    Examples:

        lumina caption data | lumina shard overlay data -
        lumina shard overlay data scores.csv --name ratings --add
        lumina shard overlay data
        lumina shard overlay data --remove captions@0002
    """
    from lumina_cli.core.shards.overlays.apply import apply_rows
    from lumina_cli.core.shards.overlays.match import read_input_rows
    from lumina_cli.core.shards.overlays.verify import describe_overlays
    from lumina_cli.core.shards.overlays.versions import remove_overlay
    from lumina_cli.core.shards.selection import resolve_shards

    if remove is not None:
        if rows is not None or add:
            raise UsageError("--remove cannot be combined with ROWS or --add; add rows in a separate command")
        output.write_rows(remove_overlay(resolve_shards(shards), remove), json, label="versions")
    elif rows is None:
        output.write_rows(describe_overlays(resolve_shards(shards)), json, label="overlays")
    else:
        output.write_rows(
            apply_rows(shards, read_input_rows(rows), name, add, output.write_note), json, label="shards"
        )


@app.command()
def encode(
    shards: Shards,
    model: Annotated[
        str, typer.Option(help="Model whose VAE and text encoder are used: a name, folder or hub id.")
    ] = "nano",
    size: Annotated[
        list[int] | None,
        typer.Option(
            help="Resolution: the side of a square of the same area, in pixels. Default: 128. Repeatable."
        ),
    ] = None,
    what: Annotated[str, typer.Option(help="What to encode, comma-separated: latents, text.")] = "latents",
    system: Annotated[str, typer.Option(help="Name of the system prompt of each caption.")] = "real",
    workers: Workers = "1",
    max_bad_rate: MaxBadRate = 0.05,
    json: Json = False,
) -> None:
    """Precompute latents and text features for training. Writes one row per shard to stdout.

    The results are stored as overlays, which `lumina train` uses automatically.

    Examples:

        lumina shard encode data --model nano --size 128 --what latents,text
        lumina shard encode data --model lumina-image-2 --size 256 --size 1024
        lumina shard encode s3://bucket/data --model lumina-image-2 --size 256 --workers ray:8
    """
    output.show_status(f"loading {model}")
    from lumina_cli.core.dataset.precompute import encode_shards

    kinds = [word.strip() for word in what.split(",") if word.strip()]
    sizes = size or [128]
    rows = encode_shards(shards, model, kinds, sizes, system, max_bad_rate, workers, output.write_note)
    output.write_rows(rows, json, label="shards")

"""`lumina shard overlay | encode`: what is learnt of samples later, kept beside their shards."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.shard.curate import MaxBadRate, Shards
from lumina_cli.cli.shard.pack import Json, app
from lumina_cli.core.errors import UsageError


@app.command()
def overlay(
    shards: Shards,
    rows: Annotated[str | None, typer.Argument(help="A file of rows, or - for stdin; none lists.")] = None,
    name: Annotated[str, typer.Option(help="What the overlay is called.")] = "captions",
    add: Annotated[bool, typer.Option("--add", help="Keep what the newest version says besides.")] = False,
    remove: Annotated[str | None, typer.Option(help="Delete an overlay, or one version: NAME@0001.")] = None,
    json: Json = False,
) -> None:
    """Lay rows over the samples that they name, as an overlay. Each call adds a version; none lists them.

    lumina caption data | lumina shard overlay data - --name captions
    """
    from lumina_cli.core.shards.overlays.apply import apply_rows
    from lumina_cli.core.shards.overlays.match import read_input_rows
    from lumina_cli.core.shards.overlays.reader import describe_overlays
    from lumina_cli.core.shards.overlays.versions import remove_overlay
    from lumina_cli.core.shards.selection import resolve_shards

    if remove is not None:
        if rows is not None or add:
            raise UsageError("--remove takes an overlay away; lay rows in another call")
        output.write_rows(remove_overlay(resolve_shards(shards), remove), json, label="versions")
    elif rows is None:
        output.write_rows(describe_overlays(resolve_shards(shards)), json, label="overlays")
    else:
        done = apply_rows(shards, read_input_rows(rows), name, add, output.note)
        output.write_rows(done, json, label="shards")


@app.command()
def encode(
    shards: Shards,
    model: Annotated[str, typer.Option(help="Whose encoders: a name, a folder or a hub id.")] = "nano",
    size: Annotated[
        list[int] | None, typer.Option(help="Pixels of a square of that area; repeatable.")
    ] = None,
    what: Annotated[str, typer.Option(help="latents, text, or both with a comma.")] = "latents",
    system: Annotated[str, typer.Option(help="System prompt before each caption, by name.")] = "real",
    max_bad_rate: MaxBadRate = 0.05,
    json: Json = False,
) -> None:
    """Encode pictures and captions once, for `lumina train`. Overlays that it finds; a row per shard out."""
    from lumina_cli.core.dataset.precompute import encode_shards
    from lumina_cli.core.models.locate import find_model

    kinds = [word.strip() for word in what.split(",") if word.strip()]
    folder, sizes = find_model(model), size or [128]
    rows = encode_shards(shards, folder, kinds, sizes, system, max_bad_rate, output.note)
    output.write_rows(rows, json, label="shards")

"""`lumina shard`: pictures and captions into webdataset tars, and a look at what is in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.group import fallback

app = typer.Typer(
    cls=fallback("pack"),
    no_args_is_help=True,
    help="Put pictures and captions into webdataset tars; `shard SOURCE DEST` is short for `shard pack`.",
)

Shards = Annotated[Path, typer.Argument(help="A folder of shards, or one tar.")]
Json = Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="A folder, a file of rows, -, shards, nano:N?seed=S or hf:NAME.")
    ],
    dest: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    per_shard: Annotated[int, typer.Option(help="Samples in a shard.", min=1)] = 1000,
    max_bad_rate: Annotated[
        float,
        typer.Option(help="Exit with 3 if a larger share of the pictures cannot be used.", min=0, max=1),
    ] = 0.05,
    workers: Annotated[int, typer.Option(help="Processes that render nano scenes; 0: this one.", min=0)] = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace the shards that DEST holds.")] = False,
    json: Json = False,
) -> None:
    """Write pictures and captions as shards, a row per shard out; bad ones go to DEST/rejects.jsonl.

    nano:N?truth=1 adds what the renderer knows: {key}.depth.png (16-bit, thousandths of a world unit) and
    {key}.masks.png (8-bit: 0 no thing, i + 1 on things[i]).
    """
    from lumina_cli.core.data.sources import read_source
    from lumina_cli.core.errors import UsageError
    from lumina_cli.core.formats.shards import write_shards

    place = Path(source).parent if source.endswith(".tar") else Path(source)
    if place.exists() and dest.resolve() == place.resolve():
        raise UsageError(f"{dest} is where the pictures come from; give the shards a folder of their own")
    captioned: list[bool] = []
    rows = output.progress(_watched(read_source(source, workers=workers), captioned), "pictures")
    shards = write_shards(rows, dest, per_shard=per_shard, max_bad_rate=max_bad_rate, force=force)
    output.write_rows(shards, json, label="shards")
    if not all(captioned):
        bare = f"{captioned.count(False)} of {len(captioned)} pictures have no caption"
        output.note(f"{bare}; `lumina train` needs them, `lumina caption {dest}` writes them")


def _watched(rows: Iterator[dict], captioned: list[bool]) -> Iterator[dict]:
    """Note of each row whether it has captions: only training needs them, and that may be days later."""
    for row in rows:
        captioned.append(bool(row.get("captions")))
        yield row


@app.command()
def info(shards: Shards, json: Json = False) -> None:
    """Show what each shard holds: a row per shard out."""
    from lumina_cli.core.formats.shards import describe_shards

    output.write_rows(describe_shards(shards), json, label="shards")


@app.command()
def cat(shards: Shards, json: Json = False) -> None:
    """Write the rows of shards; their "image" can be read by every other verb."""
    from lumina_cli.core.formats.shards import read_shards

    output.write_rows(read_shards(shards), json)


@app.command()
def verify(shards: Shards, json: Json = False) -> None:
    """Compare every picture with the hash written with it: a row per shard out, exit 1 for a bad one."""
    from lumina_cli.core.errors import LuminaError
    from lumina_cli.core.formats.shards import verify_shards

    bad = []

    def watched():
        for row in verify_shards(shards):
            bad.extend([] if row["ok"] else [row["problem"]])
            yield row

    output.write_rows(watched(), json, label="shards")
    if bad:
        raise LuminaError(f"{len(bad)} bad: {bad[0]}")

"""`lumina shard`: pictures and captions into webdataset tars, and a look at what is in them."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.group import fallback

app = typer.Typer(
    cls=fallback("pack"),
    no_args_is_help=True,
    help="Put pictures and captions into webdataset tars. `shard SOURCE DEST` is short for `shard pack`.",
)

Shards = Annotated[str, typer.Argument(help="A folder of shards, one tar, or a selection; a path or URL.")]
Json = Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="A folder, a file of rows, -, shards, nano:N?seed=S or hf:NAME; or a URL.")
    ],
    dest: Annotated[str, typer.Argument(help="Folder for the shards; a path or a URL (s3://, gs://...).")],
    per_shard: Annotated[int, typer.Option(help="Rows of the source that make a shard.", min=1)] = 1000,
    check: Annotated[
        str, typer.Option(help="quick: all parts of each file are there; full: it is decoded, too.")
    ] = "quick",
    encode: Annotated[
        str | None, typer.Option(help="Write pictures anew as png, webp, jpg or avif, upright, in sRGB.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count tokens of captions: the folder of a tokenizer, or nano.")
    ] = None,
    max_bad_rate: Annotated[
        float, typer.Option(help="Exit with 3 if a larger share of the pictures is bad.", min=0, max=1)
    ] = 0.05,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read, check and write (nano: render); as many as cores.", min=0),
    ] = None,
    links: Annotated[bool, typer.Option("--links", help="Take links that lead out of the folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the shards that DEST holds.")] = False,
    json: Json = False,
) -> None:
    """Write pictures and captions as shards, a row per shard out. Bad ones go to DEST/rejects.jsonl.

    Files keep their bytes. Run it again to go on after a kill or to add what SOURCE has more. nano:N?truth=1
    adds {key}.depth.png (16-bit, thousandths) and {key}.masks.png (8-bit: 0 no thing, i + 1 on things[i]).
    """
    from lumina_cli.core.sources.packing import PackSettings, pack_source

    counted = {True: 0, False: 0}  # rows with captions, and without

    def watched(rows):
        for row in output.progress(rows, "pictures"):
            counted[bool(row.get("captions") or row.get("error"))] += 1
            yield row

    packing = PackSettings(per_shard, max_bad_rate, force, workers, check, encode, tokenizer, links)
    shards = output.write_rows(pack_source(source, dest, packing, watched, output.note), json, label="shards")
    if shards and counted[False]:
        bare = f"{counted[False]} of {sum(counted.values())} rows have no caption"
        output.note(f"{bare}; `lumina train` needs them, `lumina caption {dest}` writes them")


@app.command()
def info(shards: Shards, json: Json = False) -> None:
    """Show what each shard holds: a row per shard out."""
    from lumina_cli.core.shards.inspect import describe_shards

    output.write_rows(describe_shards(shards), json, label="shards")


@app.command()
def cat(shards: Shards, json: Json = False) -> None:
    """Write the rows of shards. Their "image" can be read by every other verb."""
    from lumina_cli.core.io.jsonl import with_captions
    from lumina_cli.core.shards.selection import read_samples

    output.write_rows(map(with_captions, read_samples(shards)), json)


@app.command()
def verify(shards: Shards, json: Json = False) -> None:
    """Compare shards and overlays with their hashes. A row each; exit 1 for a bad one."""
    from lumina_cli.core.errors import LuminaError
    from lumina_cli.core.shards.inspect import verify_shards

    bad = []

    def watched():
        for row in verify_shards(shards):
            bad.extend([row["problem"]] if not row["ok"] else [])
            yield row

    output.write_rows(watched(), json, label="shards")
    if bad:
        raise LuminaError(f"{len(bad)} bad: {bad[0]}")

"""`lumina bench data`: how fast shards are written."""

from typing import Annotated

import typer

from lumina_cli.cli import output


def data(
    source: Annotated[
        str | None,
        typer.Argument(help="A SOURCE of files, as of `lumina shard`; else pictures are made."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are written.")] = 5000,
    size: Annotated[int, typer.Option(min=64, help="Width in pixels of the pictures that are made.")] = 512,
    per_shard: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 1000,
    check: Annotated[str, typer.Option(help="How ours looks at pictures: quick or full.")] = "quick",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each writer, in alternation.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Write the same rows by `lumina shard` and by webdataset's ShardWriter, one process each, in turns.

    Ours also checks, hashes and indexes each picture. `ratio` is the speed relative to webdataset's.
    """
    import tempfile
    from pathlib import Path

    from lumina_cli.core.bench.writers import compare_writers, write_images

    with tempfile.TemporaryDirectory(prefix="lumina-bench-") as folder:
        if source is None:
            write_images(Path(folder), rows, size)
        output.write_rows(
            compare_writers(source or folder, rows, per_shard, repeats, check), json, label="writers"
        )

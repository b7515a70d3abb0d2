"""`lumina bench data`: speed of writing shards."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json


def data(
    source: Annotated[
        str | None,
        typer.Argument(help="Source of image files, as in `lumina shard`. Default: generated images."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to write.")] = 5000,
    size: Annotated[int, typer.Option(min=64, help="Width of generated images, in pixels.")] = 512,
    per_shard: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 1000,
    check: Annotated[str, typer.Option(help="Image validation of `lumina shard`: quick or full.")] = "quick",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per writer; the writers alternate.")] = 5,
    json: Json = False,
) -> None:
    """Compare the speed of `lumina shard` with webdataset's ShardWriter. Writes one row per writer.

    Both write the same rows with one process; lumina also validates, hashes and indexes every image. "ratio"
    is the speed relative to webdataset.

    Examples:

        lumina bench data --rows 2000
        lumina bench data photos --check full --repeats 3
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

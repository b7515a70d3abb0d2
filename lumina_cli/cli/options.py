"""Options that several commands share, and the deprecated ones."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.core.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Write JSON Lines to stdout, even on a terminal.")]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda or cuda:N. Default: a GPU if present.")]
MaxBadRate = Annotated[
    float,
    typer.Option(min=0, max=1, help="Exit with code 3 if a larger fraction of the images is unreadable."),
]
Shards = Annotated[str, typer.Argument(help="Folder of shards, a single tar, or a selection; path or URL.")]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|ray[:N]",
        help="Worker processes; each handles one shard. ray or ray:N: workers on a Ray cluster.",
    ),
]


def allow_schemes_here(names: list[str] | None) -> list[str] | None:
    """Allow the schemes of --allow in this process; without the option, none."""
    from lumina_cli.core.io.allowed import allow_schemes

    allow_schemes(names or ())
    return names


Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCHEME",
        callback=allow_schemes_here,
        help="URL scheme that rows may read images from, such as s3. Repeatable. Without it, rows may name "
        "local files and files in the folder of their own SOURCE.",
    ),
]
DeprecatedShard = Annotated[str | None, typer.Option("--shard", hidden=True)]


def resolve_split(split: str | None, shard: str | None) -> str | None:
    """Return the value of --split; --shard, its name in version 0.1, still works and prints a note."""
    if shard is None:
        return split
    if split is not None:
        raise UsageError("--shard is the deprecated name of --split; give --split only")
    output.write_note("--shard is deprecated; use --split")
    return shard

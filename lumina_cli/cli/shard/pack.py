"""`lumina shard pack | info | cat | verify`: write webdataset shards, read and verify them."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.group import default_command
from lumina_cli.cli.help import VerbApp
from lumina_cli.cli.options import Allow, Json, Shards, note_missing_values

HELP = """Pack images and captions into webdataset shards, annotate, filter and report on them.

`lumina shard SOURCE DEST` is short for `lumina shard pack SOURCE DEST`.

Examples:

    lumina shard photos data
    lumina shard score data --scores sharpness,phash
    lumina shard select data best --where "shorter >= 512" --no-duplicates near
    lumina shard stats best --page stats.html
"""

app = VerbApp(cls=default_command("pack"), help=HELP)


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Image folder, file of rows (.jsonl, .csv, .tsv, .parquet, .json), '-' for stdin, shards, "
            "nano:N?seed=S or hf:NAME; path or URL."
        ),
    ],
    dest: Annotated[str, typer.Argument(help="Output folder; path or URL (s3://, gs://...).")],
    per_shard: Annotated[int, typer.Option(help="Rows per shard.", min=1)] = 1000,
    check: Annotated[
        str, typer.Option(help="Image validation: quick (file structure) or full (decode every image).")
    ] = "quick",
    encode: Annotated[
        str | None,
        typer.Option(help="Re-encode images as png, webp, jpg or avif, upright and in sRGB."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer that counts caption tokens: a folder, or nano.")
    ] = None,
    max_bad_rate: Annotated[
        float,
        typer.Option(help="Exit with code 3 if a larger fraction of the images is invalid.", min=0, max=1),
    ] = 0.05,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|ray[:N]",
            help="Worker processes; each writes one shard. Default: one per core. ray or ray:N: workers on a "
            "Ray cluster.",
            show_default=False,
        ),
    ] = None,
    links: Annotated[
        bool, typer.Option("--links", help="Follow symlinks that point outside the folder.")
    ] = False,
    lines: Annotated[
        str | None,
        typer.Option(
            help="Several lines in a caption file: one (a single caption, default), first (only the first "
            "line) or each (every line is a caption)."
        ),
    ] = None,
    allow: Allow = None,
    removed: Annotated[
        str | None,
        typer.Option(
            help="Samples in DEST that SOURCE no longer has: drop or keep them. Default: an error that names "
            "them."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report which shards would be written; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing shards in DEST.")] = False,
    json: Json = False,
) -> None:
    """Pack images and captions into webdataset shards. Writes one row per shard to stdout.

    Image files are copied byte for byte; invalid ones are listed in DEST/rejects.jsonl. Rerun the same
    command to resume an interrupted run, or to update DEST after SOURCE has changed: samples that did not
    change keep their key and shard, and only the other shards are rewritten.

    nano:N?truth=1 also writes KEY.depth.png (uint16, in thousandths) and KEY.masks.png (uint8: 0 is
    background, i + 1 is object i of "things").

    Examples:

        lumina shard photos data
        lumina shard photos data --dry-run
        lumina shard s3://bucket/photos s3://bucket/data --workers ray:64
        lumina shard "nano:1000?seed=7" nano-data --per-shard 500
    """
    from lumina_cli.core.shards.inspect import count_captions
    from lumina_cli.core.sources.packing import PackSettings, pack_source

    def track_rows(rows):
        return output.track_progress(rows, "images")

    settings = PackSettings(
        per_shard, max_bad_rate, force, workers, check, encode, tokenizer, links, lines, removed, dry_run
    )
    note_missing_values(source)
    rows = pack_source(source, dest, settings, track_rows, output.write_note)
    shards = output.write_rows(rows, json, label="shards")
    samples, missing = count_captions(dest) if shards and not dry_run else (0, 0)
    if missing:
        output.write_note(
            f"{missing} of {samples} rows have no caption; `lumina train` needs captions: "
            f"write them with `lumina caption {dest}`"
        )


@app.command()
def info(shards: Shards, json: Json = False) -> None:
    """List shards with their contents, one row per shard.

    Examples:

        lumina shard info data
        lumina shard info s3://bucket/data --json | jq .samples
    """
    from lumina_cli.core.shards.inspect import describe_shards

    output.write_rows(describe_shards(shards), json, label="shards")


@app.command()
def cat(shards: Shards, json: Json = False) -> None:
    """Write the samples of shards as rows, one row per sample.

    Every other command can read the "image" of these rows.

    Examples:

        lumina shard cat data | jq -r .captions.en.short
        lumina shard cat data | lumina caption - > captions.jsonl
    """
    from lumina_cli.core.io.captions import with_captions
    from lumina_cli.core.shards.selection import read_samples

    note_missing_values(shards)
    output.write_rows(map(with_captions, read_samples(shards)), json)


@app.command()
def verify(shards: Shards, json: Json = False) -> None:
    """Verify shards and overlays against their hashes. Writes one row per file.

    The exit code is 1 if any file is damaged.

    Examples:

        lumina shard verify data
        lumina shard verify data --json | jq "select(.ok | not)"
    """
    from lumina_cli.core.errors import LuminaError
    from lumina_cli.core.shards.inspect import verify_shards

    problems = []

    def collect_problems():
        for row in verify_shards(shards):
            problems.extend([row["problem"]] if not row["ok"] else [])
            yield row

    output.write_rows(collect_problems(), json, label="shards")
    if problems:
        raise LuminaError(f"{len(problems)} damaged file{'s' if len(problems) > 1 else ''}: {problems[0]}")

"""`lumina shard stats | preview`: dataset statistics and sample pages."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json, Shards, note_missing_values
from lumina_cli.cli.shard.pack import app
from lumina_cli.core.errors import UsageError


@app.command()
def stats(
    source: Shards,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with plots to this file.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model folder whose tokenizer counts tokens. Default: the counts in the shards, else nano's."
        ),
    ] = None,
    trained: Annotated[
        int | None, typer.Option(min=1, help="Images seen by a training run; adds epochs to the report.")
    ] = None,
    mix: Annotated[str, typer.Option(help="Sampling weight of each source, e.g. web=3,photos=1.")] = "",
    distance: Annotated[
        int,
        typer.Option(min=1, max=16, help="Maximum Hamming distance (of 64 bits) between near duplicates."),
    ] = 4,
    json: Json = False,
) -> None:
    """Report dataset statistics as JSON or HTML. Writes one summary row to stdout.

    The report covers yield, captions, tokens, duplicates, crops, epochs and scores.

    Examples:

        lumina shard stats data
        lumina shard stats data --tokenizer nano --page stats.html | jq .duplicates
        lumina shard stats data --trained 1000000 --mix web=3,photos=1
    """
    from lumina_cli.core.curation.report.caption_texts import repeated_caption
    from lumina_cli.core.curation.report.stats import compute_stats, headline, write_stats_page
    from lumina_cli.core.encoders.token_count import TokenCounter

    count = TokenCounter(tokenizer) if tokenizer else None
    note_missing_values(source)
    summary = compute_stats(source, count, trained, _read_weights(mix), distance)
    if page:
        write_stats_page(page, summary)
        output.write_note(f"page: {page}")
    if summary["tokenizer"] == "nano" and not tokenizer:
        output.write_note(
            "tokens are counted with the bundled tokenizer; Gemma's counts differ (use --tokenizer FOLDER)"
        )
    if repeated := repeated_caption(summary):
        output.write_note(repeated)
    if json or not output.is_terminal():
        output.write_rows(iter([{name: value for name, value in summary.items() if name != "plots"}]), True)
    else:
        output.print_table([headline(summary)])


def _read_weights(text: str) -> dict[str, float] | None:
    try:
        pairs = (word.rpartition("=") for word in text.split(",") if word.strip())
        return {name.strip(): float(value) for name, _, value in pairs} or None
    except ValueError:
        raise UsageError(f"--mix {text!r}: expected SOURCE=NUMBER, comma-separated") from None


@app.command()
def preview(
    source: Shards,
    page: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("preview.html"),
    samples: Annotated[int, typer.Option(min=1, max=2000, help="Number of images to show.")] = 48,
    by: Annotated[
        str | None, typer.Option(help="Show images across the range of this score, the best first.")
    ] = None,
    json: Json = False,
) -> None:
    """Write an HTML page of samples with captions and scores. Writes one summary row to stdout.

    The page is self-contained.

    Examples:

        lumina shard preview data
        lumina shard preview data --by sharpness --samples 100 --page sharpness.html
    """
    from lumina_cli.core.curation.report.contact_sheet import write_preview

    note_missing_values(source)
    output.write_rows(iter([write_preview(source, page, samples, by)]), json)

"""`lumina shard stats | preview`: what shards are worth, and what is in them, as pages for people."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.shard.pack import app
from lumina_cli.core.errors import UsageError

Source = Annotated[str, typer.Argument(help="A folder of shards, a tar, or a selection; a path or a URL.")]
Json = Annotated[bool, typer.Option("--json", help="The summary on stdout even on a terminal.")]


@app.command()
def stats(
    source: Source,
    page: Annotated[Path | None, typer.Option(help="Write a page with plots here.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Counts tokens, a model folder; else the shards' own count, or nano.")
    ] = None,
    trained: Annotated[
        int | None, typer.Option(min=1, help="Pictures a training run sees: tells epochs.")
    ] = None,
    mix: Annotated[str, typer.Option(help="Weight of each source in it: web=3,photos=1.")] = "",
    distance: Annotated[
        int, typer.Option(min=1, max=16, help="Bits in which near copies differ at most.")
    ] = 4,
    json: Json = False,
) -> None:
    """Say what shards are worth, as JSON or a page. Yield, captions, tokens, copies, crops, epochs, scores.

    lumina shard stats data --tokenizer nano --trained 1000000 --page stats.html | jq .duplicates
    """
    from lumina_cli.core.curation.report.stats import compute_stats, headline, write_stats_page
    from lumina_cli.core.encoders.token_count import TokenCounter

    count = TokenCounter(tokenizer) if tokenizer else None
    summary = compute_stats(source, count, trained, _weights(mix), distance)
    if page:
        write_stats_page(page, summary)
        output.note(f"page: {page}")
    if summary["tokenizer"] == "nano" and not tokenizer:
        output.note("tokens: counted with the embedded tokenizer; Gemma's counts differ (--tokenizer FOLDER)")
    if json or not output.is_terminal():
        output.write_rows(iter([{name: value for name, value in summary.items() if name != "plots"}]), True)
    else:
        output.table([headline(summary)])


def _weights(text: str) -> dict[str, float] | None:
    try:
        pairs = (word.rpartition("=") for word in text.split(",") if word.strip())
        return {name.strip(): float(value) for name, _, value in pairs} or None
    except ValueError:
        raise UsageError(f"--mix {text!r}: write SOURCE=NUMBER, with commas") from None


@app.command()
def preview(
    source: Source,
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("preview.html"),
    samples: Annotated[int, typer.Option(min=1, max=2000, help="Pictures to show.")] = 48,
    by: Annotated[str | None, typer.Option(help="Spread them over this score, the best first.")] = None,
    json: Json = False,
) -> None:
    """Write a page of samples with their captions and scores. It needs nothing beside it.

    lumina shard preview data --by sharpness --page sharpness.html
    """
    from lumina_cli.core.curation.report.contact_sheet import write_preview

    output.write_rows(iter([write_preview(source, page, samples, by)]), json)

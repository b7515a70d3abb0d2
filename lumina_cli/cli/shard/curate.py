"""`lumina shard score | select`: measure images, then select the samples of the next training stage."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json, MaxBadRate, Shards, Workers, note_missing_values
from lumina_cli.cli.shard.pack import app
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import SCORES


@app.command()
def score(
    shards: Shards,
    scores: Annotated[
        str, typer.Option(help=f"Scores to compute, comma-separated: {', '.join(SCORES)}, caption.")
    ] = "sharpness,entropy,phash",
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model of a score: SCORE=FOLDER, SCORE=HUB_ID or SCORE=MODEL#CLASS. Repeatable."),
    ] = None,
    workers: Workers = "1",
    max_bad_rate: MaxBadRate = 0.05,
    json: Json = False,
) -> None:
    """Score every image once, for later selection. Writes one row per shard to stdout.

    The values are stored in the overlay "scores".

    Examples:

        lumina shard score data --scores sharpness,phash --workers 8
        lumina shard score data --scores aesthetic --model aesthetic=models/aesthetic
        lumina shard score s3://bucket/data --workers ray:64
    """
    from lumina_cli.core.curation.scores import score_shards

    pairs = [word.partition("=") for word in model or []]
    if bad := [name + sign for name, sign, value in pairs if not value]:
        raise UsageError(f"--model {bad[0]}: expected SCORE=MODEL")
    names = [name.strip() for name in scores.split(",") if name.strip()]
    models = {name: value for name, _, value in pairs}
    rows = score_shards(shards, names, models, workers, max_bad_rate, output.write_note)
    output.write_rows(rows, json, label="shards")


@app.command()
def select(
    shards: Shards,
    dest: Annotated[str, typer.Argument(help="Output folder; the selection can be used as a source.")],
    best: Annotated[
        str | None,
        typer.Option(
            help="Keep the best samples: a fraction with a decimal point (0.1, 1.0) or a count (1000)."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(help='Score to rank by. If no sample has "score", the only other score is used.'),
    ] = "score",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Filter expression, e.g. 'width >= 512 and aspect < 2'. Repeatable."),
    ] = None,
    no_duplicates: Annotated[
        str | None,
        typer.Option(
            help="Remove duplicates: exact or near. Of near duplicates, the largest image is kept; of "
            "equally large ones, the one with the best score."
        ),
    ] = None,
    distance: Annotated[
        int, typer.Option(help="Maximum Hamming distance (of 64 bits) between near duplicates.")
    ] = 4,
    per_source: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of samples per source.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing selection in DEST.")] = False,
    json: Json = False,
) -> None:
    """Select samples for the next training stage. Writes one row per step to stdout.

    The selection in DEST is a list of samples; images are not copied.

    Examples:

        lumina shard select data large --where "shorter >= 512" --no-duplicates near
        lumina shard select data best --best 0.1 --by aesthetic
        lumina shard select data balanced --per-source 10000
    """
    from lumina_cli.core.curation.select import SelectionSettings, parse_best, select_samples

    fraction = parse_best(best) if best is not None else None
    note_missing_values(shards)
    settings = SelectionSettings(fraction, by, tuple(where or ()), no_duplicates, distance, per_source)
    steps = select_samples(shards, dest, settings, force)["steps"]
    for step in steps:
        if "instead_of" in step:
            output.write_note(f"no sample has a {step['instead_of']!r}; selected the {step['step']}")
    output.write_rows(iter(steps), json, label="steps")

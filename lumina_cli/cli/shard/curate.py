"""`lumina shard score | select`: what pictures are measured by, and which go on to the next stage."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.shard.pack import Json, app
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import SCORES

Shards = Annotated[str, typer.Argument(help="A folder of shards, a path or a URL; or a selection.")]
MaxBadRate = Annotated[
    float, typer.Option(help="Exit with 3 if a larger share of the pictures cannot be read.", min=0, max=1)
]


@app.command()
def score(
    shards: Shards,
    scores: Annotated[
        str, typer.Option(help=f"With commas: {', '.join(SCORES)}, caption.")
    ] = "sharpness,entropy,phash",
    model: Annotated[list[str] | None, typer.Option(help="aesthetic=FOLDER or hub id; MODEL#CLASS.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, a shard at a time each.")] = 1,
    max_bad_rate: MaxBadRate = 0.05,
    json: Json = False,
) -> None:
    """Measure each picture once, for later choices. The values are the overlay "scores"; a row per shard out.

    lumina shard score data --scores sharpness,phash --workers 8
    """
    from lumina_cli.core.curation.scores import score_shards

    pairs = [word.partition("=") for word in model or []]
    if bad := [name + sign for name, sign, value in pairs if not value]:
        raise UsageError(f"--model {bad[0]}: write SCORE=MODEL")
    names = [name.strip() for name in scores.split(",") if name.strip()]
    models = {name: value for name, _, value in pairs}
    rows = score_shards(shards, names, models, workers, max_bad_rate, output.note)
    output.write_rows(rows, json, label="shards")


@app.command()
def select(
    shards: Shards,
    dest: Annotated[str, typer.Argument(help="Folder for the selection, itself a SOURCE.")],
    best: Annotated[
        str | None,
        typer.Option(help="A share (0.1; 1.0 is all), or a number of samples (1 is the best one)."),
    ] = None,
    by: Annotated[
        str, typer.Option(help='Score that says what is best; where none is called "score", the only one.')
    ] = "score",
    where: Annotated[
        list[str] | None, typer.Option(help="'width >= 512 and aspect < 2'; repeatable.")
    ] = None,
    no_duplicates: Annotated[
        str | None,
        typer.Option(help="exact; near: of pictures alike the one with most pixels, then the best, stays."),
    ] = None,
    distance: Annotated[int, typer.Option(help="Bits of 64 in which near copies differ at most.")] = 4,
    per_source: Annotated[int | None, typer.Option(min=1, help="Samples of one source at most.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another selection.")] = False,
    json: Json = False,
) -> None:
    """Choose the next stage's samples without copying a picture. A row per step out.

    lumina shard select data data-1m --where 'shorter >= 512' --no-duplicates near --best 0.1 --by aesthetic
    """
    from lumina_cli.core.curation.select import SelectionSettings, parse_best, select_samples

    share = parse_best(best) if best is not None else None
    choice = SelectionSettings(share, by, tuple(where or ()), no_duplicates, distance, per_source)
    steps = select_samples(shards, dest, choice, force)["steps"]
    for step in steps:
        if "instead_of" in step:
            output.note(f"no sample has a {step['instead_of']!r}: the {step['step']}")
    output.write_rows(iter(steps), json, label="steps")

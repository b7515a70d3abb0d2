"""`lumina caption`: pictures in, rows with captions out."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.core.formats.rows import in_memory


def caption(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folders, pictures, files of rows, shards, nano:N, hf:NAME, or '-' for rows from stdin."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A folder or hub id of any image-text-to-text model.")
    ] = "U4R/OmniCaptioner",
    levels: Annotated[
        str, typer.Option(help="Lengths to write, with commas: detailed, medium, short, tags.")
    ] = "detailed,medium,short,tags",
    langs: Annotated[str, typer.Option(help="Languages, with commas: en, zh, ja, ru, de.")] = "en",
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="Any integer; the same seed writes the same captions.")] = 0,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to ask again where a caption fails its checks.")
    ] = 2,
    max_bad_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable pictures above which the exit code is 3.")
    ] = 0.05,
    engine: Annotated[str, typer.Option(help="What runs the model: transformers.")] = "transformers",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU if there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Describe each picture at several lengths, in several languages: pictures in, rows with captions out.

    lumina caption photos --levels short,tags --langs en,de > rows.jsonl

    Pictures of nano:N and hf:NAME are in no file that a row could name, so their rows come out without
    "image". To keep the two together: lumina shard nano:N DIR, then lumina caption DIR.
    """
    from lumina_cli.core.data.sources import open_row_image, read_source
    from lumina_cli.core.registry import CAPTIONERS
    from lumina_cli.core.unicap.prompts import LANGS, LEVELS, check_names
    from lumina_cli.core.unicap.stream import caption_rows

    wanted_levels = check_names("level", _words(levels), LEVELS)
    wanted_langs = check_names("language", _words(langs), tuple(LANGS))
    rows = chain.from_iterable([_watched(one, read_source(one)) for one in source])
    rows = caption_rows(
        rows,
        CAPTIONERS.load(engine)(model, device=device),
        wanted_levels,
        wanted_langs,
        open_row_image,
        batch=batch,
        seed=seed,
        retries=retries,
        max_bad_rate=max_bad_rate,
        on_reject=lambda row, reason: output.note(f"lumina caption: left out {reason}"),
    )
    output.write_rows(rows, json=json, label="captions")


def _watched(source: str, rows: Iterator[dict]) -> Iterator[dict]:
    """Say before the first caption is written that the rows of this source will not name their pictures."""
    for number, row in enumerate(rows):
        if number == 0 and in_memory(row.get("image")):
            output.note(
                f"lumina caption: the pictures of {source} are in no file, so its rows come out without "
                f"'image'; `lumina shard {source} DIR`, then `lumina caption DIR`, keeps them together"
            )
        yield row


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]

"""`lumina eval captions`: compare captioners on the same images."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.eval.run import app
from lumina_cli.cli.options import Allow, Json, note_missing_values


@app.command()
def captions(
    sources: Annotated[
        list[str], typer.Argument(help="Files of rows, shards or other sources with captions.")
    ],
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page of images and captions to this file.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Number of images on the page.")] = 40,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Compare captions of the same images. Writes one row per file, language and level.

    Each row reports the length of the captions, their information density and their agreement with the other
    files; for images with a "scene" (nano) also the fraction of correct statements. If rows have
    "captioned_by", only captions that an engine wrote are counted.

    Examples:

        lumina eval captions qwen.jsonl omni.jsonl
        lumina eval captions qwen.jsonl omni.jsonl --page captions.html --samples 100
    """
    from lumina_cli.core.evals.captions.compare import open_files, summarize
    from lumina_cli.core.evals.captions.facts import add_facts
    from lumina_cli.core.evals.captions.page import SPARE, headline, write_captions_page
    from lumina_cli.core.sources.source import open_row_image, read_source

    for source in sources:
        note_missing_values(source)
    files = open_files(sources, partial(read_source, need=None))
    for file in files:
        for note in filter(None, (file.exclusions(), file.missing_files())):
            output.write_note(note)
    rows = list(add_facts(files, list(summarize(files))))
    if page:
        write_captions_page(page, files, rows, open_row_image, samples)
        output.write_note(f"page: {page}")
    if json or not output.is_terminal():
        output.write_rows(iter(rows), True, label="rows")
    else:
        output.print_table([headline(row) for row in rows], optional=SPARE)

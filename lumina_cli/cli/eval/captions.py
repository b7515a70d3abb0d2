"""`lumina eval captions`: captioners compared, side by side."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.eval.run import app


@app.command()
def captions(
    sources: Annotated[
        list[str], typer.Argument(help="Files of rows, shards or other SOURCEs with captions.")
    ],
    page: Annotated[Path | None, typer.Option(help="Write a page with pictures and captions here.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Pictures on the page.")] = 40,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")] = False,
) -> None:
    """Compare captions of the same pictures. A row per file, language and level out.

    Each row says how long captions are, how much they tell for their length, and how far they agree with the
    other files. Rows with a "scene" (nano) also get what of it is true. Where rows tell in "captioned_by"
    which captions an engine wrote, only those count.

    lumina eval captions qwen.jsonl omni.jsonl --page captions.html
    """
    from lumina_cli.core.evals.captions.compare import open_files, summarize
    from lumina_cli.core.evals.captions.facts import add_facts
    from lumina_cli.core.evals.captions.page import SPARE, headline, write_captions_page
    from lumina_cli.core.sources.source import open_row_image, read_source

    files = open_files(sources, partial(read_source, need=None))
    for file in files:
        for note in filter(None, (file.exclusions(), file.missing_files())):
            output.note(note)
    rows = list(add_facts(files, list(summarize(files))))
    if page:
        write_captions_page(page, files, rows, open_row_image, samples)
        output.note(f"page: {page}")
    if json or not output.is_terminal():
        output.write_rows(iter(rows), True, label="kinds")
    else:
        output.table([headline(row) for row in rows], spare=SPARE)

"""`lumina bench caption`: how fast engines write captions, and how fast everything around them is."""

from typing import Annotated

import typer

from lumina_cli.cli import output


def caption(
    engine: Annotated[
        list[str] | None, typer.Option(help="Only this engine; may be repeated. [default: noop, nano]")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Rendered scenes to describe.")] = 64,
    levels: Annotated[str, typer.Option(help="As for lumina caption.")] = "detailed,medium,short,tags",
    langs: Annotated[str, typer.Option(help="As for lumina caption.")] = "en",
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU if there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout, also on a terminal.")] = False,
) -> None:
    """Describe rendered scenes with each engine: pictures, captions and tokens a second.

    lumina bench caption --engine noop --pictures 500

    noop has no model, so its row is the speed of opening, checking and writing alone. The pictures are
    rendered, and each model loaded and warmed by one batch, before the clock starts.
    """
    from lumina_cli.core.io.jsonl import dump_row
    from lumina_cli.core.sources.source import open_row_image, read_source
    from lumina_cli.core.unicap.engines import open_engine
    from lumina_cli.core.unicap.stats import CaptionStats
    from lumina_cli.core.unicap.stream import CaptionRequest, caption_rows

    job = CaptionRequest(tuple(levels.split(",")), tuple(langs.split(",")))
    rows = list(output.progress(read_source(f"nano:{pictures}"), "scenes", pictures))

    def timed():
        for name in engine or ("noop", "nano"):
            one = open_engine(name, device=device)
            list(caption_rows(rows[:batch], one, job, open_row_image, batch=batch))
            tally = CaptionStats()
            lines = (
                dump_row(row)
                for row in caption_rows(rows, one, job, open_row_image, batch=batch, tally=tally)
            )
            size = sum(map(len, lines))
            yield {"engine": name, "batch": batch, "characters": size, **tally.row()}

    output.write_rows(timed(), json=json, label="engines")

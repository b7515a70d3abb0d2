"""`lumina bench caption`: speed of captioning engines, and of the pipeline around them."""

from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Device, Json


def caption(
    engine: Annotated[
        list[str] | None, typer.Option(help="Measure only this engine. Repeatable. [default: noop, nano]")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Number of rendered images to caption.")] = 64,
    levels: Annotated[
        str, typer.Option(help="Levels of detail, as in `lumina caption`.")
    ] = "detailed,medium,short,tags",
    langs: Annotated[str, typer.Option(help="Languages, as in `lumina caption`.")] = "en",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare the speed of captioning engines on rendered images. Writes one row per engine.

    Rows have images, captions and tokens per second. The engine noop has no model, so its row measures
    loading, checking and writing alone. Rendering, model loading and one warm-up batch are not timed.

    Examples:

        lumina bench caption --engine noop --pictures 500
        lumina bench caption --engine nano --levels short --batch 32
    """
    from lumina_cli.core.io.jsonl import dump_row
    from lumina_cli.core.sources.source import open_row_image, read_source
    from lumina_cli.core.unicap.engines import open_engine
    from lumina_cli.core.unicap.stats import CaptionObserver
    from lumina_cli.core.unicap.stream import CaptionRequest, caption_rows

    request = CaptionRequest(tuple(levels.split(",")), tuple(langs.split(",")))
    rows = list(output.track_progress(read_source(f"nano:{pictures}"), "scenes", pictures))

    def time_engines():
        for name in engine or ("noop", "nano"):
            one = open_engine(name, device=device)
            list(caption_rows(rows[:batch], one, request, open_row_image, batch=batch))
            observer = CaptionObserver()
            lines = (
                dump_row(row)
                for row in caption_rows(rows, one, request, open_row_image, batch=batch, observer=observer)
            )
            size = sum(map(len, lines))
            yield {"engine": name, "batch": batch, "characters": size, **observer.stats.row()}

    output.write_rows(time_engines(), json=json, label="engines")

"""A captioning run: the split of the rows, resuming, reuse of earlier captions, and progress messages.

The retries of rejected captions are in `batch.py`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from lumina_cli.core.errors import TooManyRejects, UsageError
from lumina_cli.core.unicap.engines.journal import ROWS, AnswerJournal
from lumina_cli.core.unicap.items import CaptionRequest, Row
from lumina_cli.core.unicap.resumable_file import ResumableFile
from lumina_cli.core.unicap.reuse import EarlierCaptions, add_earlier_captions
from lumina_cli.core.unicap.stats import CaptionObserver
from lumina_cli.core.unicap.stream import caption_rows

MESSAGE_INTERVAL = 60.0  # seconds between two messages about the progress


def run_captions(
    rows: Iterable[Row],
    open_engine: Callable[[], Any],
    request: CaptionRequest,
    open_image: Callable[[Row], Image.Image],
    *,
    split: tuple[int, int] = (0, 1),
    out: Path | None = None,
    reuse: Path | None = None,
    settings: Row | None = None,
    batch: int = 8,
    observer: CaptionObserver | None = None,
    **options: Any,
) -> Iterator[Row]:
    """Caption every N-th row from the I-th on; see `caption_rows`, which also receives `options`.

        open_engine    opens the engine; called when there is a row to caption
        split          (I, N)
        out            file to write; an interrupted run resumes there, and existing rows are not yielded
        reuse          earlier output file; its captions are copied and only missing ones are requested
        settings       further settings that `out` depends on
        observer       receives progress, rejects and messages

    Raises:
        UsageError: if `reuse` is `out`, or `out` was written with other settings.
        LuminaError: if `reuse` does not exist, or the source changed since `out` was begun.
        TooManyRejects: see `caption_rows`.
    """
    observer = observer or CaptionObserver()
    observer.on_split(*split)
    if reuse and out and reuse.resolve() == out.resolve():
        raise UsageError(f"--reuse {reuse} is the output file; choose another --out")
    earlier = EarlierCaptions(reuse, request.keep, request.replace) if reuse else None
    own_rows = islice(rows, split[0], None, split[1])

    def caption(todo: Iterable[Row], pass_bad: bool) -> Iterator[Row]:
        todo = add_earlier_captions(earlier, todo)
        settled = {"batch": batch, "observer": observer, "pass_bad": pass_bad, **options}
        return caption_rows(todo, open_engine, request, open_image, **settled)

    if out is None:
        yield from _with_messages(caption(own_rows, pass_bad=True), observer)
        return
    stored = {**request.settings(), **(settings or {}), "shard": "/".join(map(str, split))}
    stored |= {"reuse": str(reuse)} if reuse else {}
    with ResumableFile(out, stored, batch, request.is_fully_rejected) as file:
        observer.file = file
        journal = AnswerJournal(out.with_name(f"{out.name}.answers.jsonl"), max(ROWS, 8 * batch))
        options["journal"] = journal
        observer.on_resume()
        captioned = caption(_remaining(file, own_rows, observer), pass_bad=False)
        with contextlib.closing(journal), contextlib.closing(captioned):
            try:
                for row in _with_messages(captioned, observer):
                    new = file.write(row)
                    journal.row_written()
                    if new:
                        yield row
            except TooManyRejects:  # after the last row
                journal.delete()
                raise
            journal.delete()


def _remaining(file: ResumableFile, rows: Iterable[Row], observer: CaptionObserver) -> Iterator[Row]:
    """Yield the rows that `file` lacks, and record in the statistics whether there were any."""
    some = False
    for row in file.remaining(rows):
        if not some:
            observer.on_resume()
        some = True
        yield row
    observer.stats.idle = not some and file.done > 0


def _with_messages(rows: Iterator[Row], observer: CaptionObserver) -> Iterator[Row]:
    """Pass rows on, with a message about the progress once per MESSAGE_INTERVAL."""
    last = time.monotonic()
    for row in rows:
        yield row
        if time.monotonic() - last >= MESSAGE_INTERVAL:
            last = time.monotonic()
            observer.on_message(observer.stats.line())

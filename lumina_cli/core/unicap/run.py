"""A whole run of captioning: its share of the rows, what an earlier run left, and its statistics."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.unicap.batch import CaptionRequest, Row
from lumina_cli.core.unicap.resumable_file import ResumableFile
from lumina_cli.core.unicap.reuse import EarlierCaptions, added_to
from lumina_cli.core.unicap.stats import CaptionStats
from lumina_cli.core.unicap.stream import caption_rows

PACE = 60.0  # seconds between two lines about how far a run is


def run_captions(
    rows: Iterable[Row],
    open_engine: Callable[[], Any],
    job: CaptionRequest,
    open_image: Callable[[Row], Image.Image],
    *,
    share: tuple[int, int] = (0, 1),
    out: Path | None = None,
    reuse: Path | None = None,
    settings: Row | None = None,
    batch: int = 8,
    tally: CaptionStats | None = None,
    tell: Callable[[str], None] = lambda line: None,
    **others: Any,
) -> Iterator[Row]:
    """Yield every N-th row from the I-th on with captions, as `caption_rows` does, which takes `others`, too.

    With `out` they are written to that file, and a run that was interrupted goes on where it stopped; rows
    that were there before are not yielded. Captions of the earlier file `reuse` are taken over, and only what
    is missing is asked for. `settings` are those that the file depends on besides `job`. The
    model is loaded once there is a row to do. `tell` is told of every row that is left out, and once a minute
    how far the run is.
    """
    tally = tally or CaptionStats()
    if tally.total is not None:
        tally.total = len(range(share[0], tally.total, share[1]))
        tally.watch()
    if reuse and out and reuse.resolve() == out.resolve():
        raise UsageError(f"--reuse {reuse} is the file to write; name another --out")
    earlier = EarlierCaptions(reuse, job.keep) if reuse else None
    mine = islice(rows, share[0], None, share[1])
    settled = {"batch": batch, "tally": tally, **others}
    if out is None:
        note = partial(_left_out, tell, None)
        settled |= {"on_reject": note, "pass_bad": True}
        described = caption_rows(added_to(earlier, mine), open_engine, job, open_image, **settled)
        yield from _paced(described, tally, tell)
        return
    about = {**vars(job), **(settings or {}), "shard": "/".join(map(str, share))}
    about |= {"reuse": str(reuse)} if reuse else {}
    with ResumableFile(out, about, batch, job.is_in_vain) as ledger:
        tally.resume(*ledger.before[:2])
        note = partial(_left_out, tell, ledger)
        settled |= {"on_reject": note, "before": lambda: ledger.before}
        todo = added_to(earlier, _begun(ledger, mine, tally))
        described = caption_rows(todo, open_engine, job, open_image, **settled)
        with contextlib.closing(described):
            for row in _paced(described, tally, tell):
                if ledger.write(row):
                    yield row


def _begun(ledger: ResumableFile, rows: Iterable[Row], tally: CaptionStats) -> Iterator[Row]:
    some = False
    for row in ledger.remaining(rows):
        if not some:
            tally.resume(*ledger.before[:2])
        some = True
        yield row
    tally.idle = not some and ledger.done > 0


def _left_out(tell: Callable[[str], None], ledger: ResumableFile | None, row: Row, reason: str) -> None:
    if ledger is None or ledger.reject(row, reason):
        tell(f"left out {reason}")


def _paced(rows: Iterator[Row], tally: CaptionStats, tell: Callable[[str], None]) -> Iterator[Row]:
    """Pass rows on, and tell how far the run is once in a while."""
    told = time.monotonic()
    for row in rows:
        yield row
        if time.monotonic() - told >= PACE:
            told = time.monotonic()
            tell(tally.line())

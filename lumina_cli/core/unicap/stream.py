"""Rows in, rows with captions out: pictures opened ahead, batches described in turn, always in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.unicap.batch import CaptionItem, CaptionRequest, Row, caption_batch
from lumina_cli.core.unicap.protocol import Answer, Captioner, Question
from lumina_cli.core.unicap.stats import CaptionStats

__all__ = ["Answer", "CaptionRequest", "Captioner", "Question", "caption_rows"]

OPENERS = 2  # threads that read pictures


def caption_rows(
    rows: Iterable[Row],
    captioner: Captioner | Callable[[], Captioner],
    job: CaptionRequest,
    open_image: Callable[[Row], Image.Image],
    *,
    batch: int = 8,
    max_bad_rate: float = 1.0,
    before: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0),
    on_reject: Callable[[Row, str], None] | None = None,
    scorer: Any = None,
    tally: CaptionStats | None = None,
    pass_bad: bool = False,
) -> Iterator[Row]:
    """Yield each row with `captions[lang][level]` added to those it has; reads only some batches ahead.

    `captioner` may be a function that opens one, as may `scorer`: it is called once there is a row. A row
    whose picture `open_image` cannot open gets its reason as "error", and that in one word as "code", is
    told to `on_reject(row, reason)` and left out; with `pass_bad` it goes on. Once all rows are through,
    TooManyBad is raised where more than `max_bad_rate` of them were such, or were opened but got none of the
    captions that were asked for; with the (rows, unread ones, ones in vain) that an earlier run did `before`.
    A caption that fails its checks more than `job.retries` times is in `rejected_captions` with the reason.
    What is written depends on the picture and `job`, not on the row's place or `batch`.
    """
    tally = tally or CaptionStats()
    seen = unread = vain = 0
    for shots, calls in _described(rows, captioner, job, open_image, batch, scorer):
        tally.add(shots, calls)
        for shot in shots:
            seen += 1
            if shot.error is None:
                finished = shot.finished_row(job.engine)
                vain += job.is_in_vain(finished)
                yield finished
                continue
            unread, failed = unread + 1, shot.failed_row()
            if on_reject is not None:
                on_reject(failed, shot.error)
            if pass_bad:
                yield failed
    _check_bad(*map(sum, zip((seen, unread, vain), before(), strict=True)), max_bad_rate)


def _check_bad(seen: int, unread: int, vain: int, most: float) -> None:
    """Raise TooManyBad where more than `most` of the pictures seen came to nothing; say how many of each."""
    bad = unread + vain
    if bad <= most * seen:
        return
    said = [f"{unread} of {seen} pictures could not be opened"] if unread else []
    said += [f"{vain} of {seen} pictures got none of the captions that were asked for"] if vain else []
    raise TooManyRejects(f"{', '.join(said)} ({bad / seen:.0%}); --max-bad-rate allows {most:.0%}")


def _described(
    rows: Iterable[Row], captioner: Any, job: CaptionRequest, open_image: Callable, batch: int, scorer: Any
) -> Iterator[tuple[Sequence[CaptionItem], int]]:
    """Yield batches of finished shots, each with how many calls of the engine it took."""
    groups = chunked((CaptionItem(index, row) for index, row in enumerate(rows)), batch)
    first = next(groups, None)
    if first is None:
        return
    engine = captioner if hasattr(captioner, "answer") or hasattr(captioner, "map_rows") else captioner()
    try:
        job.suits(engine)
        groups = _and_then(first, groups)
        if hasattr(engine, "map_rows"):
            yield from engine.map_rows(groups, job, open_image)
        else:
            scorer = scorer() if callable(scorer) else scorer
            yield from _in_lanes(_opened(groups, open_image), engine, job, scorer)
    finally:
        if hasattr(engine, "close"):
            engine.close()


def _in_lanes(
    groups: Iterator[list[CaptionItem]], engine: Captioner, job: CaptionRequest, scorer: Any
) -> Iterator[tuple[list[CaptionItem], int]]:
    """Describe batches, as many at a time as the engine likes; yield them in order."""

    def work(shots: list[CaptionItem]) -> tuple[list[CaptionItem], int]:
        calls = caption_batch([shot for shot in shots if shot.error is None], engine, job, scorer)
        return shots, calls

    if engine.lanes < 2:
        yield from map(work, groups)
        return
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(engine.lanes)
    try:
        for shots in groups:
            waiting.append(pool.submit(work, shots))
            if len(waiting) >= engine.lanes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        engine.close()  # ends what is under way, so that the threads end, too
        pool.shutdown(wait=True, cancel_futures=True)


def open_item(shot: CaptionItem, open_image: Callable[[Row], Image.Image]) -> CaptionItem:
    """Open a shot's picture, or note why it cannot be."""
    try:
        shot.open(open_image)
    except (LuminaError, OSError) as error:
        shot.error, shot.code = str(error), getattr(error, "code", "unusable")
    return shot


def _opened(groups: Iterator[list[CaptionItem]], open_image: Callable) -> Iterator[list[CaptionItem]]:
    """Yield batches with their pictures, opened by threads while the batch before is used."""
    with ThreadPoolExecutor(OPENERS) as pool:
        coming = None
        for shots in groups:
            ahead = [pool.submit(open_item, shot, open_image) for shot in shots]
            if coming is not None:
                yield [future.result() for future in coming]
            coming = ahead
        if coming is not None:
            yield [future.result() for future in coming]


def _and_then(first: list, others: Iterator[list]) -> Iterator[list]:
    yield first
    yield from others

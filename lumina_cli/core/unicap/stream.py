"""The caption stream: images are opened ahead, batches are captioned in turn, rows keep their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.io.jsonl import chunked
from lumina_cli.core.limits import shorten
from lumina_cli.core.unicap.batch import caption_batch
from lumina_cli.core.unicap.items import CaptionItem, CaptionRequest, Row
from lumina_cli.core.unicap.protocol import Answer, Captioner, Question
from lumina_cli.core.unicap.scoring.clip import open_own_check
from lumina_cli.core.unicap.stats import CaptionObserver

__all__ = ["Answer", "CaptionRequest", "Captioner", "Question", "caption_rows"]

NANO_SCOPE = "; the nano engine only describes rendered scenes: choose another --engine for other images"
OPENERS = 2  # threads that open images


def caption_rows(
    rows: Iterable[Row],
    captioner: Captioner | Callable[[], Captioner],
    request: CaptionRequest,
    open_image: Callable[[Row], Image.Image],
    *,
    batch: int = 8,
    max_bad_rate: float = 1.0,
    scorer: Any = None,
    observer: CaptionObserver | None = None,
    pass_bad: bool = False,
    journal: Any = None,
) -> Iterator[Row]:
    """Yield each row with the requested captions merged into `captions[language][level]`.

        captioner       an engine, or a function that opens one; called when there is a row
        open_image      row -> image (RGB)
        batch           rows per call of the engine; a few batches are read ahead
        max_bad_rate    largest fraction of rows that may fail
        scorer          a scorer of captions, or a function that opens one
        observer        receives progress and rejects
        pass_bad        also yield the rows that failed, with "error" and "code"
        journal         AnswerJournal for the answers of a paid endpoint

    A row fails if its image cannot be opened, or if all its requested captions were rejected. Captions that
    fail their checks more than `request.retries` times are stored under `rejected_captions` with the reason.
    Captions depend on the image and the request, not on the position of the row or on `batch`.

    Raises:
        UsageError: if the engine does not support the request.
        TooManyRejects: after all rows, if more than `max_bad_rate` of them failed, earlier runs included.
    """
    observer = observer or CaptionObserver()
    seen, unreadable, rejected, reason = 0, 0, 0, ""
    for items, calls in _caption_batches(rows, captioner, request, open_image, batch, scorer, journal):
        observer.on_batch(items, calls)
        for item in items:
            seen += 1
            if item.error is None:
                finished = item.finished_row()
                if request.is_fully_rejected(finished):
                    rejected += 1
                    reason = reason or _find_reason(finished["rejected_captions"])
                yield finished
                continue
            unreadable, failed = unreadable + 1, item.failed_row()
            observer.on_reject(failed, item.error)
            if pass_bad:
                yield failed
    totals = zip((seen, unreadable, rejected), observer.previous, strict=True)
    nano = (request.engine or "").partition(":")[0] == "nano"
    reason = f"; the first reason: {shorten(reason, 200)}" if reason else ""
    _check_failures(*map(sum, totals), max_bad_rate, NANO_SCOPE if nano else reason)


def _find_reason(rejected: list[dict]) -> str:
    """Return why an endpoint sent no answer; "" if it did, and the caption failed its checks."""
    found = (each for each in rejected if isinstance(each, dict) and each.get("code") == "endpoint")
    return str(next(found, {}).get("reason", ""))


def _check_failures(seen: int, unreadable: int, rejected: int, most: float, scope: str = "") -> None:
    """Raise TooManyRejects if more than the fraction `most` failed; `scope` explains rejects."""
    bad = unreadable + rejected
    if bad <= most * seen:
        return
    reasons = [f"{unreadable} of {seen} images cannot be opened"] if unreadable else []
    reasons += [f"{rejected} of {seen} images got none of the requested captions"] if rejected else []
    raise TooManyRejects(
        f"{', '.join(reasons)} ({bad / seen:.0%}); --max-bad-rate allows {most:.0%}{scope * bool(rejected)}"
    )


def _caption_batches(
    rows: Iterable[Row],
    captioner: Any,
    request: CaptionRequest,
    open_image: Callable,
    batch: int,
    scorer: Any,
    journal: Any = None,
) -> Iterator[tuple[Sequence[CaptionItem], int]]:
    """Yield batches of finished items, each with the number of engine calls it took."""
    groups = chunked((CaptionItem(index, row) for index, row in enumerate(rows)), batch)
    first = next(groups, None)
    if first is None:
        return
    engine = captioner if hasattr(captioner, "answer") or hasattr(captioner, "map_rows") else captioner()
    try:
        request.check_engine(engine)
        if hasattr(engine, "journal"):
            engine.journal = journal
        groups = _prepend(first, groups)
        if hasattr(engine, "map_rows"):
            yield from engine.map_rows(groups, request, open_image)
        else:
            scorer = scorer() if callable(scorer) else scorer or open_own_check(engine)
            lanes = getattr(engine, "lanes", 1)
            if getattr(engine, "one_by_one", False):
                groups, lanes = ([item] for group in groups for item in group), lanes * batch
            opened = _with_open_images(groups, open_image)
            yield from _caption_concurrently(opened, engine, request, scorer, lanes)
    finally:
        if hasattr(engine, "close"):
            engine.close()


def _caption_concurrently(
    groups: Iterator[list[CaptionItem]], engine: Captioner, request: CaptionRequest, scorer: Any, lanes: int
) -> Iterator[tuple[list[CaptionItem], int]]:
    """Caption up to `lanes` batches at a time; yield them in order."""

    def work(items: list[CaptionItem]) -> tuple[list[CaptionItem], int]:
        calls = caption_batch([item for item in items if item.error is None], engine, request, scorer)
        return items, calls

    if lanes < 2:
        yield from map(work, groups)
        return
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(lanes)
    try:
        for items in groups:
            waiting.append(pool.submit(work, items))
            while waiting and (len(waiting) >= lanes or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        engine.close()  # aborts pending calls, so that the threads end
        pool.shutdown(wait=True, cancel_futures=True)


def open_item(item: CaptionItem, open_image: Callable[[Row], Image.Image]) -> CaptionItem:
    """Open the image of an item, or record the reason of the failure."""
    try:
        item.open(open_image)
    except (LuminaError, OSError) as error:
        item.error, item.code = str(error), getattr(error, "code", "unusable")
    return item


def _with_open_images(
    groups: Iterator[list[CaptionItem]], open_image: Callable
) -> Iterator[list[CaptionItem]]:
    """Yield batches with open images; threads open the next batch while the current one is captioned."""
    with ThreadPoolExecutor(OPENERS) as pool:
        next_batch = None
        for items in groups:
            futures = [pool.submit(open_item, item, open_image) for item in items]
            if next_batch is not None:
                yield [future.result() for future in next_batch]
            next_batch = futures
        if next_batch is not None:
            yield [future.result() for future in next_batch]


def _prepend(first: list, others: Iterator[list]) -> Iterator[list]:
    yield first
    yield from others

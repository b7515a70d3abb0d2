"""Worker processes and threads: results in the order of the jobs, a bounded number ahead, no orphans."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from lumina_cli.core.errors import LuminaError


def map_in_order(
    work: Callable[[Any], Any], jobs: Iterable, workers: int, start: Callable | None = None
) -> Iterator:
    """Yield work(job) for each job, in order, computed by `workers` processes.

    At most two jobs per worker are submitted ahead. `work` and the jobs must be picklable; `start` is called
    once in each process. If the caller stops early, running jobs are finished first.

    Raises:
        LuminaError: if a worker dies.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=start_worker, initargs=(start,)
    )
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > 2 * workers:  # far enough ahead to keep every worker busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise LuminaError("a worker process died, probably out of memory; try --workers 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def map_in_threads(work: Callable[[Any], Any], items: Iterable, threads: int = 32) -> Iterator:
    """Yield work(item) for each item, in order, computed by threads: for requests, which mostly wait.

    At most two items per thread are read ahead.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(items, 2 * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(items, 1))
        finally:
            for future in waiting:
                future.cancel()


def start_worker(start: Callable | None = None) -> None:
    """Ignore Ctrl-C, which the parent handles by stopping the workers, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

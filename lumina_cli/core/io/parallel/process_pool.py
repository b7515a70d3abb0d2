"""Worker processes and threads: results in the order of the jobs, a bounded number ahead, no orphans."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from lumina_cli.core.errors import LuminaError

_terminated: list[bool] = []  # not empty once this worker received SIGTERM
GRACE = 0.3  # seconds between SIGTERM and SIGKILL


def map_in_order(
    work: Callable[[Any], Any], jobs: Iterable, workers: int, start: Callable | None = None
) -> Iterator:
    """Yield work(job) for each job, in order, computed by `workers` processes.

    At most two jobs per worker are submitted ahead. `work` and the jobs must be picklable; `start` is called
    once in each process. If the caller stops early, or is interrupted, the workers are terminated: a job must
    write its files whole or not at all.

    Raises:
        LuminaError: if a worker dies.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=start_worker, initargs=(start,)
    )
    waiting: deque = deque()
    finished = False
    try:
        for job in jobs:
            with _sigint_blocked():  # inherited by a process that is started now
                waiting.append(pool.submit(_run_job, work, job))
            if len(waiting) > 2 * workers:  # far enough ahead to keep every worker busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        finished = True
    except BrokenProcessPool as error:
        raise LuminaError("a worker process died, probably out of memory; use fewer workers") from error
    finally:
        if not finished:
            _terminate(pool)
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


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block.

    Processes started in the block never receive it, not even before `start_worker` runs.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _terminate(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool: SIGTERM, so that they remove temporary files, then SIGKILL."""
    processes = list((pool._processes or {}).values())
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()


def start_worker(start: Callable | None = None) -> None:
    """Ignore Ctrl-C, which the parent handles by stopping the workers, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_quietly)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start()


def _run_job(work: Callable[[Any], Any], job: Any) -> Any:
    """Return work(job); a worker that was terminated during an earlier job ends here."""
    if _terminated:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(job)


def _exit_quietly(number: int, frame: Any) -> None:
    """Leave the running job so that it removes its temporary files; torch would print where it was."""
    _terminated.append(True)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

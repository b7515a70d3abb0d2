"""Work items on Ray: one actor per CPU or GPU, records in the order of the items, dead workers replaced.

Items and records are small: workers read their inputs and write their outputs themselves. Workers that die
with their node or for lack of memory are reported and replaced, and their items are repeated. If the process
that started the run is killed, Ray ends the workers; the next run resumes by the files that are written.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import partial_name
from lumina_cli.core.io.location import is_url
from lumina_cli.core.io.parallel.ray_library import connected, error_of_worker, import_ray
from lumina_cli.core.io.parallel.ray_workers import MAX_ITEM, Surroundings, Worker

AHEAD = 4  # items per worker that may be finished before an earlier one
ATTEMPTS = 3  # workers that may die with the same item
PATIENCE = 30.0  # seconds without any worker before a message

Note = Callable[[str], None]


@dataclass(frozen=True)
class RayRun:
    """How items run on Ray.

    count     workers; None: one per GPU or CPU that the cluster has when the run starts
    outputs   folders that workers write to
    inputs    files and folders that workers read
    gpu       whether each worker uses a GPU, if the cluster has any
    notify    receives messages, such as about a worker that died
    """

    count: int | None = None
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    gpu: bool = False
    notify: Note = field(default=lambda line: None)


def map_on_ray(work: Callable[[Any], Any], items: Iterable, run: RayRun) -> Iterator:
    """Yield work(item) for each item, in order, after a round trip through JSON.

    `work` and the items must be picklable, at most MAX_ITEM bytes an item; records are JSON values of at most
    MAX_RECORD bytes.

    Raises:
        MissingDependency: if Ray is not installed.
        UsageError: if a node does not see an output or input folder, or has another version of this package.
        LuminaError: if the cluster cannot be reached, ATTEMPTS workers die with the same item, or an item or
            record is too large; also what `work` raises.
    """
    ray = import_ray("--workers ray")
    with connected(ray, run.count), _probes(run.outputs) as probes:
        surroundings = Surroundings(os.getcwd(), probes, run.inputs)
        pool = _Pool(ray, work, items, run, surroundings)
        try:
            yield from pool.records()
        finally:
            pool.close()


@contextmanager
def _probes(outputs: Iterable[str]) -> Iterator[dict[str, str]]:
    """Create a file in each local output folder for the block; a node that sees it shares the folder."""
    name = partial_name("")  # after a kill it is removed like any temporary file
    folders = [filesystem.to_text(folder) for folder in outputs if not is_url(folder)]
    for folder in folders:
        filesystem.make_dir(folder)
        _touch(filesystem.join(folder, name))
    try:
        yield {folder: filesystem.join(folder, name) for folder in folders}
    finally:
        for folder in folders:
            filesystem.remove(folder, [name])


def _touch(probe: str) -> None:
    filesystem.write_file(probe, b"", durable=False)


@dataclass
class _Item:
    """An item with its number from 0, ready to send, and how many workers died with it."""

    number: int
    packed: bytes
    deaths: int = 0


@dataclass(eq=False)
class _Actor:
    """A worker, and the node that it runs on as soon as that is known."""

    handle: Any
    host: str = ""


class _Pool:
    """The workers, and the items that wait, run or are finished."""

    def __init__(self, ray: Any, work: Callable, items: Iterable, run: RayRun, surroundings: Surroundings):
        self.ray, self.run, self.surroundings = ray, run, surroundings
        self.items = (_Item(number, _pack(ray, work, item)) for number, item in enumerate(items))
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if run.gpu else 0
        self.count = run.count or gpus or max(1, int(resources.get("CPU", 1)))
        needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        self.kind = ray.remote(Worker).options(scheduling_strategy="SPREAD", max_restarts=0, **needs)
        died = ("RayActorError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError")
        self.died = tuple(getattr(ray.exceptions, name) for name in died if hasattr(ray.exceptions, name))
        self.starting: dict[Any, _Actor] = {}  # reference to the check -> worker
        self.running: dict[Any, tuple[_Actor, _Item]] = {}  # reference to the record -> worker, its item
        self.idle: list[_Actor] = []
        self.queue: deque[_Item] = deque()
        self.finished: dict[int, Any] = {}
        self.taken = self.due = 0  # items taken from the input; number of the record that is yielded next
        self.failed_starts = 0
        self.impatient = True

    def records(self) -> Iterator:
        """Yield the records in order."""
        while True:
            self._take_items()
            self._start_workers()
            while self.idle and self.queue:
                actor, item = self.idle.pop(), self.queue.popleft()
                self.running[actor.handle.run.remote(item.packed)] = actor, item
            if self.due in self.finished:
                yield self.finished.pop(self.due)
                self.due += 1
            elif self.queue or self.running:
                self._wait()
            else:
                return

    def _take_items(self) -> None:
        """Keep an item ready for each worker, within AHEAD of the first unfinished one."""
        room = min(self.count - len(self.queue), AHEAD * self.count - (self.taken - self.due))
        more = list(islice(self.items, max(0, room)))
        self.taken += len(more)
        self.queue.extend(more)

    def _start_workers(self) -> None:
        wanted = min(self.count, len(self.queue) + len(self.running))
        for _ in range(wanted - len(self.starting) - len(self.idle) - len(self.running)):
            for probe in self.surroundings.probes.values():
                _touch(probe)  # old temporary files count as abandoned
            actor = _Actor(self.kind.remote(self.surroundings))
            self.starting[actor.handle.check.remote()] = actor

    def _wait(self) -> None:
        """Wait until a worker has started or finished an item."""
        references = [*self.starting, *self.running]
        ready, _ = self.ray.wait(references, num_returns=1, timeout=PATIENCE)
        if not ready and not self.running and self.impatient:
            self.impatient = False
            self.run.notify(f"waiting for a free {'GPU' if self.run.gpu else 'CPU'} of the Ray cluster")
        for reference in ready:
            if reference in self.starting:
                self._check(self.starting.pop(reference), reference)
            else:
                self._finish(*self.running.pop(reference), reference)

    def _check(self, actor: _Actor, reference: Any) -> None:
        """Make a worker that has started available.

        Raises:
            UsageError: if its node cannot take part in the run.
            LuminaError: if several workers could not start.
        """
        try:
            actor.host, problem = self.ray.get(reference)
        except self.died as error:
            self.failed_starts += 1
            if self.failed_starts >= ATTEMPTS:
                raise error_of_worker(error) from error
            self.run.notify("a Ray worker died while it started; another one takes its place")
            return
        if problem:
            self._end(actor)
            raise UsageError(f"the Ray node {actor.host} {problem}")
        self.idle.append(actor)

    def _finish(self, actor: _Actor, item: _Item, reference: Any) -> None:
        """Store the record of an item, or queue the item again if its worker died.

        Raises:
            LuminaError: if `work` raised an error, or too many workers died with this item.
        """
        try:
            self.finished[item.number] = json.loads(self.ray.get(reference))
            self.idle.append(actor)
        except self.died as error:
            self._end(actor)
            item.deaths += 1
            if item.deaths >= ATTEMPTS:
                raise LuminaError(
                    f"{ATTEMPTS} Ray workers died with the same item, probably out of memory; use fewer "
                    "workers, or nodes with more memory"
                ) from error
            self.run.notify(f"a Ray worker on {actor.host} died; another one repeats its item")
            self.queue.appendleft(item)
        except Exception as error:  # Ray derives the types of errors in workers
            self._end(actor)
            raise error_of_worker(error) from error

    def close(self) -> None:
        """End the workers; what they write appears whole or not at all."""
        actors = [*self.starting.values(), *self.idle, *(actor for actor, _ in self.running.values())]
        for actor in actors:
            self._end(actor)

    def _end(self, actor: _Actor) -> None:
        with suppress(Exception):  # it may be dead, and so may the cluster
            self.ray.kill(actor.handle)


def _pack(ray: Any, work: Callable, item: Any) -> bytes:
    packed = ray.cloudpickle.dumps((work, item))
    if len(packed) > MAX_ITEM:
        raise LuminaError(
            f"an item of {len(packed) >> 20} MiB is too large to send to a Ray worker, at most "
            f"{MAX_ITEM >> 20} MiB: images must be files that workers read themselves, and shards must hold "
            "fewer rows"
        )
    return packed

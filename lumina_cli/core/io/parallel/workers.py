"""Which processes do independent work items: this one, worker processes, or a Ray cluster."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from lumina_cli.core.device import cpu_count
from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.location import Location, is_process_local, to_text
from lumina_cli.core.io.parallel.process_pool import map_in_order

RAY = re.compile(r"ray(?::(\d+))?")


@dataclass(frozen=True)
class Workers:
    """Processes that do work items.

    count   0 and 1 mean this process, without `ray`; None: as many as the machine or the cluster has room for
    ray     whether they are Ray actors
    """

    count: int | None = 1
    ray: bool = False

    @property
    def processes(self) -> int:
        """Number of processes for a step that runs on this machine in any case."""
        return cpu_count() if self.ray or self.count is None else self.count

    def check_output(self, place: Location) -> None:
        """Check that these workers can write to a folder.

        Raises:
            UsageError: if it is in the memory of this process.
        """
        if (self.ray or self.processes > 1) and is_process_local(place):
            raise UsageError(
                f"{place} is in the memory of this process, where workers cannot write; use --workers 1"
            )

    def for_output(self, place: Location) -> "Workers":
        """Return these workers, or this process if worker processes cannot write to a folder.

        Raises:
            UsageError: with Ray, if the folder is in the memory of this process.
        """
        if not self.ray and is_process_local(place):
            return Workers()
        self.check_output(place)
        return self


def parse_workers(text: "str | int | Workers | None", least: int = 0) -> Workers:
    """Return the workers that --workers describes: a number, "ray" or "ray:N"; None: one process per core.

    Raises:
        UsageError: if the text is something else, or the number is less than `least`, or than 1 with Ray.
    """
    if isinstance(text, Workers):
        return text
    if text is None:
        return Workers(None)
    found = RAY.fullmatch(str(text).strip())
    number = found[1] if found else str(text).strip()
    lowest = 1 if found else least
    if found and number is None:
        return Workers(None, True)
    if found and number and not number.strip("0"):
        raise UsageError(f"--workers {text}: ray:N needs N of at least 1")
    if not re.fullmatch(r"\d{1,6}", number or "") or int(number) < lowest:
        raise UsageError(
            f"--workers {text}: must be a number of at least {least}, ray, or ray:N with N of at least 1"
        )
    return Workers(int(number), bool(found))


def run_items(
    work: Callable[[Any], Any],
    items: Iterable,
    workers: Workers,
    *,
    outputs: Iterable[Location] = (),
    inputs: Iterable[Location] = (),
    gpu: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator:
    """Yield the record work(item) of each item, in order.

        work      reads its input and writes its output itself, and returns a small record of JSON values;
                  picklable, as the items are
        outputs   folders that `work` writes to
        inputs    local files and folders that it reads; Ray nodes must see both
        gpu       whether it uses a GPU; Ray then starts one worker per GPU, if the cluster has any
        notify    receives messages, such as about a Ray worker that died

    On Ray, tuples in records become lists. A single item is done by this process unless it is for Ray.

    Raises:
        UsageError, LuminaError, MissingDependency: see `map_on_ray`.
        LuminaError: if a worker process dies.
    """
    if workers.ray:
        from lumina_cli.core.io.parallel.ray_pool import RayRun, map_on_ray

        run = RayRun(workers.count, tuple(map(to_text, outputs)), tuple(map(to_text, inputs)), gpu, notify)
        return map_on_ray(work, items, run)
    if workers.processes < 2:
        return map(work, items)
    items = iter(items)
    ahead = list(islice(items, 2))
    if len(ahead) < 2:
        return map(work, ahead)
    return map_in_order(work, chain(ahead, items), workers.processes)

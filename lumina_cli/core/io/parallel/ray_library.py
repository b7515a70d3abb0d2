"""Ray itself: the import with a message if it is missing, the connection to a cluster, and its errors."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from lumina_cli.core.errors import LuminaError, MissingDependency
from lumina_cli.core.io.parallel.ray_logging import quiet_ray

QUIET = {"logging_level": logging.ERROR, "log_to_driver": False}


def import_ray(option: str) -> Any:
    """Return the module `ray`, quiet; `option` is the one that needs it.

    Raises:
        MissingDependency: if it is not installed; the message names the extra.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(f"{option} needs `pip install 'lumina-cli[ray]'`") from error
    quiet_ray()
    return ray


@contextlib.contextmanager
def connected(ray: Any, cpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of `ray start` during the block, or start one on this machine.

    A cluster that starts here has `cpus` CPUs, None: as many as the machine, and ends with the block. An
    existing connection of this process is used and kept.

    Raises:
        LuminaError: if the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    try:
        start_ray(ray, cpus)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError...
        raise LuminaError(f"Ray cannot start: {_last_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(ray: Any, cpus: int | None = None) -> None:
    """Connect to a cluster as `connected` does; the connection lasts until `ray.shutdown()`."""
    try:
        ray.init(num_cpus=cpus, include_dashboard=False, **QUIET)
    except ValueError:  # an existing cluster has its own number of CPUs
        if cpus is None:
            raise
        ray.init(include_dashboard=False, **QUIET)


def error_of_worker(error: BaseException) -> LuminaError:
    """Return the LuminaError that a worker raised, else one with the last line of Ray's message."""
    seen, one = set(), error
    while one is not None and id(one) not in seen:
        cause = getattr(one, "cause", None)  # Ray derives a class of its own from the type of the error
        if isinstance(cause, LuminaError):
            return cause
        if isinstance(one, LuminaError):
            return one
        seen.add(id(one))
        one = cause or one.__cause__
    return LuminaError(f"a Ray worker failed: {_last_line(error)}")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

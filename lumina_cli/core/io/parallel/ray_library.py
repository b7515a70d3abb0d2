"""Ray itself: the import with a message if it is missing, the connection to a cluster, and its errors."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.io.parallel.ray_logging import quiet_ray

TIMEOUT = 10.0  # seconds for a cluster to answer
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
    start_ray(ray, cpus)
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(ray: Any, cpus: int | None = None) -> None:
    """Connect to a cluster as `connected` does; the connection lasts until `ray.shutdown()`."""
    check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, **QUIET)
        except ValueError:  # an existing cluster has its own number of CPUs
            if cpus is None:
                raise
            ray.init(include_dashboard=False, **QUIET)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError...
        raise LuminaError(f"Ray cannot start: {' '.join(str(error).split())[:300]}") from error


def check_address(address: str) -> None:
    """Check that a cluster answers at HOST:PORT; Ray itself waits for minutes. Other forms are left to Ray.

    Raises:
        UsageError: if the address is that of the dashboard.
        LuminaError: if nothing answers.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS {address} takes jobs (`ray job submit -- lumina ...`); lumina itself connects to "
            "the port of the head node, such as HOST:6379"
        )
    host, colon, port = address.rpartition(":")
    if not colon or "//" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LuminaError(f"no Ray cluster answers at {address} (RAY_ADDRESS): {reason}") from error


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

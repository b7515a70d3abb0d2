"""The process that works on a Ray node: checks that it sees the files of the run, then does its items."""

import json
import os
import socket
import sys
from dataclasses import dataclass, field

from lumina_cli import __version__
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.location import is_url

MAX_ITEM = 16 << 20  # bytes of an item as it is sent
MAX_RECORD = 4 << 20  # bytes of a record as it returns: results are files, a record only names and counts


def count_threads() -> int | None:
    """Return the number of threads of one operation of torch, or None if torch is not loaded."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


@dataclass(frozen=True)
class Surroundings:
    """What a worker shares with the process that started the run.

    folder   the working directory, to which relative paths refer
    probes   {output folder: a file that the starting process created in it}
    inputs   local files and folders that must exist
    version  of this package
    threads  of torch, if it is loaded: another number rounds differently
    """

    folder: str
    probes: dict[str, str]
    inputs: tuple[str, ...] = ()
    version: str = __version__
    threads: int | None = field(default_factory=count_threads)

    def find_problem(self) -> str | None:
        """Return why a process on this node cannot take part in the run, or None."""
        if self.version != __version__:
            return f"has lumina {__version__}, not {self.version}; install the same version on all nodes"
        for folder, probe in self.probes.items():
            if not filesystem.is_file(probe):
                return (
                    f"does not see {folder}, a folder of another machine only; write to s3:// or to a file "
                    "system that all nodes share"
                )
        for place in self.inputs:
            if not is_url(place) and not os.path.exists(place):
                return f"does not see {place}; read from s3:// or from a file system that all nodes share"
        return None


class Worker:
    """An actor: one process that does one item after another."""

    def __init__(self, surroundings: Surroundings):
        self.surroundings = surroundings
        if os.path.isdir(surroundings.folder):
            os.chdir(surroundings.folder)
        if surroundings.threads:
            import torch  # Ray gives a worker one thread per CPU that it reserves

            torch.set_num_threads(surroundings.threads)

    def check(self) -> tuple[str, str | None]:
        """Return the name of this node, and why it cannot take part in the run, or None."""
        return socket.gethostname(), self.surroundings.find_problem()

    def run(self, packed: bytes) -> str:
        """Do one item, a packed (work, item); return work(item), a JSON value, as text.

        Raises:
            LuminaError: if the text has more than MAX_RECORD bytes.
        """
        from ray import cloudpickle

        work, item = cloudpickle.loads(packed)
        record = json.dumps(work(item))
        if len(record) > MAX_RECORD:
            raise LuminaError(
                f"a record of {len(record) >> 20} MiB is too large to return to the process that started the "
                f"run, at most {MAX_RECORD >> 20} MiB: shards must hold fewer rows"
            )
        return record

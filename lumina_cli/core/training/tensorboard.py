"""Scalars for TensorBoard, written in the calling thread, so that the caller can handle a full disk.

torch's SummaryWriter writes in a background thread, which fails on a full disk with a traceback.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from lumina_cli.core.io.atomic import disk_errors

VERSION = "brain.Event:2"


def new_event_file(folder: Path, step: int) -> Path:
    """Return the path of the events after `step`; TensorBoard reads files in the order of their names."""
    return folder / f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{step:07d}"


@contextmanager
def event_file(folder: Path, step: int) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Provide a function that writes scalars, name -> value, at a step.

    TensorBoard discards earlier events after `step`, which a resumed run writes again.

    Raises:
        LuminaError: if the file cannot be written.
    """
    path = new_event_file(folder, step)
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    records = RecordWriter(file)

    def write(event: Event) -> None:
        event.wall_time = time.time()
        with disk_errors(path):
            records.write(event.SerializeToString())
            file.flush()

    def add(scalars: dict[str, float], at: int) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        write(Event(step=at, summary=Summary(value=values)))

    try:
        write(Event(file_version=VERSION))
        write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        yield add
    finally:
        with suppress(OSError):  # each event was flushed, or its error was raised
            file.close()

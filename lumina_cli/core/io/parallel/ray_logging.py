"""Suppression of Ray messages that are not relevant to captioning."""

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Iterator

# Ray Data passes arguments to actors by reference, and Ray warns that a restarted actor may miss them. The
# executor keeps these references until all work is done, so the warning does not apply.
NOISE = b"has constructor arguments in the object store and max_restarts > 0"
_STDERR_LOCK = threading.RLock()  # all threads share stderr; actor starts may nest


def quiet_ray() -> None:
    """Patch Ray in this process: no output on stdout, which is for rows, and no NOISE on stderr."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None
    with contextlib.suppress(ImportError, AttributeError):
        from ray.actor import ActorClass

        if not hasattr(ActorClass._remote, "quiet"):
            ActorClass._remote = _quietly(ActorClass._remote)


def _quietly(start):
    @functools.wraps(start)
    def start_quietly(*words, **settings):
        with without_noise():
            return start(*words, **settings)

    start_quietly.quiet = True
    return start_quietly


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Buffer stderr within the block, also of C++ code; write everything except NOISE afterwards."""
    with _STDERR_LOCK, contextlib.ExitStack() as stack:
        try:
            shown = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        stack.callback(os.close, shown)
        aside = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            aside.seek(0)
            lines = aside.read().splitlines(keepends=True)
            with open(2, "wb", buffering=0, closefd=False) as stderr:
                stderr.write(b"".join(line for line in lines if NOISE not in line))

"""Keeps Ray from writing on the screen what is no news to whom captions pictures."""

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Iterator

# Ray Data hands its actors their work by reference, and Ray warns of that, since an actor that is restarted
# needs it again. But what runs the work holds the references until all of it is done.
NOISE = b"has constructor arguments in the object store and max_restarts > 0"
_ALONE = threading.RLock()  # stderr is one for all threads; Ray may begin an actor while it begins another


def quiet_ray() -> None:
    """Change the Ray of this process: nothing on stdout, where rows go, and no NOISE on stderr."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None
    with contextlib.suppress(ImportError, AttributeError):
        from ray.actor import ActorClass

        if not hasattr(ActorClass._remote, "quiet"):
            ActorClass._remote = _quietly(ActorClass._remote)


def _quietly(begin):
    @functools.wraps(begin)
    def begin_quietly(*words, **settings):
        with without_noise():
            return begin(*words, **settings)

    begin_quietly.quiet = True
    return begin_quietly


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Hold back what is written on stderr inside the block, by C++ too; let all but NOISE out behind it."""
    with _ALONE, contextlib.ExitStack() as stack:
        try:
            shown = os.dup(2)
        except OSError:  # the shell has closed it
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

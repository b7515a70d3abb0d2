"""A bucket on a real local S3 server, whose address comes from the environment, as for any user."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator

import fsspec
import pytest


class Gate:
    """Holds uploads of objects whose path matches `pattern`, after the first `passed`, while it is closed.

    A process whose upload is held is in the middle of its work, however fast or slow the machine is.
    """

    def __init__(self):
        self.changed, self.pattern, self.passed, self.held = threading.Condition(), None, 0, 0

    def around(self, app: Callable) -> Callable:
        """Return a WSGI application that passes requests on to another one."""

        def answer(request: dict, start: Callable):
            path = request["PATH_INFO"]
            with self.changed:
                if request["REQUEST_METHOD"] == "PUT" and self.pattern and self.pattern.search(path):
                    self.passed -= 1
                    if self.passed < 0:
                        self.held += 1
                        self.changed.notify_all()
                        self.changed.wait_for(lambda: self.pattern is None)
                        try:
                            return app(request, start)
                        finally:
                            self.held -= 1
                            self.changed.notify_all()
            return app(request, start)

        return answer

    @contextlib.contextmanager
    def closed(self, pattern: str, passed: int) -> Iterator["Gate"]:
        """Close the gate for the block."""
        with self.changed:
            self.pattern, self.passed = re.compile(pattern), passed
        try:
            yield self
        finally:
            with self.changed:
                self.pattern = None
                self.changed.notify_all()
                self.changed.wait_for(lambda: not self.held)  # also uploads of processes that are killed

    def wait_for(self, count: int) -> None:
        """Wait until `count` uploads are held."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.held >= count, 120), f"{self.held} uploads are held"


@contextlib.contextmanager
def local_bucket(name: str, gate: Gate | None = None) -> Iterator[str]:
    """Return the URL of a new bucket, as a context manager; the server ends with it."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch:
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        if gate is not None:
            server._server.app = gate.around(server._server.app)
        address = "http://{}:{}".format(*server.get_host_and_port())
        for key, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
            patch.setenv(f"AWS_{key}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # one may know the server of another module
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()

"""A bucket on a real local S3 server, whose address comes from the environment, as for any user."""

import contextlib
from collections.abc import Iterator

import fsspec
import pytest


@contextlib.contextmanager
def local_bucket(name: str) -> Iterator[str]:
    """Return the URL of a new bucket, as a context manager; the server ends with it."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch:
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        address = "http://{}:{}".format(*server.get_host_and_port())
        for key, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
            patch.setenv(f"AWS_{key}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # one may know the server of another module
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()

"""Servers for the tests of the captioning engines."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_endpoint import Endpoint

from lumina_cli.core.registry import ASSETS

CAPTIONER = ASSETS / "nano" / "captioner"


@pytest.fixture
def serve():
    open_ones = []

    def start(reply):
        open_ones.append(Endpoint(reply))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.close()


@pytest.fixture(scope="module")
def server():
    """Yield the URL of `transformers serve`, a real server of OpenAI's interface, with the nano captioner."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    words = [command, "serve", CAPTIONER, "--port", port, "--device", "cpu", "--dtype", "float32"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(list(map(str, words)), **quiet)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait()

"""A server that runs `lumina` commands of shell scripts without importing torch again for each of them.

`shell_environment` starts the server and writes the programs `lumina` and `python` into a folder for PATH. `lumina` passes its
arguments, its folder, its environment and its three streams to the server, which forks a process for the command.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENT = """#!{python} -ISs
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(request)
sys.exit(int(connection.recv(16) or 1))
"""


def serve(address: str) -> None:
    """Accept commands until the process is killed."""
    import diffusers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from lumina_cli.cli import app  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            run_command(connection)
        connection.close()


def run_command(connection: socket.socket) -> None:
    """Run the command of one connection in this process, answer with its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        request = b""
        while len(request) < int.from_bytes(size, "big"):
            request += connection.recv(1 << 16)
        words, folder, environment = json.loads(request)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        from lumina_cli.cli.app import run

        code = run(words)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        connection.sendall(str(code).encode())
        os._exit(0)


@contextlib.contextmanager
def shell_environment(folder: Path) -> Iterator[dict[str, str]]:
    """Return the environment of shells whose `lumina` runs on a server, as a context manager.

    Args:
        folder: an empty folder for the programs and the socket.
    """
    # threads that wait for each other slow a busy machine down
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment = os.environ | threads | {"PYTHONPATH": str(ROOT)}
    address = str(folder / "socket")
    server = subprocess.Popen([sys.executable, __file__, address], env=environment)
    try:
        until = time.monotonic() + 120
        while not (folder / "socket").exists():
            assert server.poll() is None, "the server of commands did not start"
            assert time.monotonic() < until, "the server of commands did not start in two minutes"
            time.sleep(0.05)
        client = CLIENT.format(python=os.path.realpath(sys.executable), address=address)
        programs = {"lumina": client, "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'}
        programs["torchrun"] = f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n'
        for name, script in programs.items():
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        yield environment | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    serve(sys.argv[1])

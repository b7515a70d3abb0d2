"""Signals and closed streams: Ctrl-C, SIGTERM, `| head` and `>&-` end a command cleanly."""

import json
import subprocess
import sys

import pytest


def test_a_closed_pipe_is_not_an_error(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "x" * 2000, "n": i}) + "\n" for i in range(2000)))
    code = (
        "from lumina_cli.cli import output, app; from lumina_cli.core.io.jsonl import read_rows; import sys;"
        "app.app.command('spill')(lambda: output.write_rows(read_rows(sys.argv[1]), True) and None);"
        "app.Verbs.resolve_command = app.HelpGroup.resolve_command; sys.exit(app.run(['spill']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(rows)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix can close a stream")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_closed_by_the_shell_counts_as_empty(closed, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    code = "from lumina_cli.cli import output, app; from lumina_cli.cli.options import read_rows; app._open_closed_streams(); import sys;"
    code += "output.write_rows(read_rows(sys.argv[1:], 'prompt'), total=1); output.write_note('done')"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path / "p.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if " >&-" in f" {closed}" else '{"prompt": "a cat"}\n')
    assert done.stderr == ("" if "2>&-" in closed else "done\n")


def test_a_closed_stdout_is_not_an_error():
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "lumina_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ENDED = """
import os, signal, sys, time
from lumina_cli.cli import app
from lumina_cli.core import doctor

def run_checks(*_):
    {before}
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        {after}
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun and Slurm send one each
        print("cleaned up")
    yield

doctor.run_checks = run_checks
sys.argv[1:] = ["doctor"]
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pass", "pass"),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "pass"),  # as in the background of a script
        # training installs its own handler
        ("signal.signal(signal.SIGINT, lambda *_: None)", "raise KeyboardInterrupt"),
    ],
)
def test_sigterm_interrupts_with_exit_code_143(before, after):
    command = [sys.executable, "-c", ENDED.format(before=before, after=after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (
        143, "cleaned up\n", "lumina doctor: terminated\n"
    )  # fmt: skip


LOST = """
import signal, sys
from lumina_cli.cli import app
from lumina_cli.core import doctor

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that runs in the background ignores it

class RaisesWhenDeleted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def run_checks(*_):
    for number in range(9):
        yield {"check": str(number)}
        RaisesWhenDeleted()

doctor.run_checks = run_checks
sys.argv[1:] = ["doctor", "--json"]
app.main()
"""


def test_ctrl_c_in_a_destructor_takes_effect_at_the_next_row():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "lumina doctor: interrupted")
    assert done.stdout.splitlines() == ['{"check": "0"}']


FORKED = """
import os, signal, time
from lumina_cli.cli import app

app._handle_sigterm()
ready, signalled = os.pipe()
child = os.fork()
if not child:
    os.write(signalled, b"!")
    time.sleep(20)
    os._exit(0)
os.read(ready, 1)  # Python loses signals that arrive during a fork
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_sigterm_ends_a_forked_worker():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("-15\n", "")

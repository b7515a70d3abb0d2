"""Scalars for TensorBoard, and the one-line error on a full disk."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.training import tensorboard
from lumina_cli.core.training.loop import log_to
from lumina_cli.core.weights.run_folder import RunFolder

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
ROW = {"step": 1, "stage": "low", "stage_step": 1, "loss": 0.5}


def read(folder):
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_the_scalars_and_drops_those_that_a_resumed_run_writes_again(tmp_path):
    run = RunFolder(tmp_path)
    with log_to(run, 0) as log:
        for step in (1, 2, 3):
            log(ROW | {"step": step, "loss": step / 2})
    with log_to(run, 1) as log:
        log(ROW | {"step": 2, "loss": 8.0})
    assert read(tmp_path) == {"low/loss": [(1, 0.5), (2, 8.0)]}


def test_a_logged_row_is_on_the_disk(tmp_path):
    with log_to(RunFolder(tmp_path), 0) as log:
        log(ROW)
        assert read(tmp_path) == {"low/loss": [(1, 0.5)]}


@needs_full
@pytest.mark.parametrize("full", ["metrics.jsonl", "events"])
def test_a_full_disk_is_a_one_line_error_with_the_file(full, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "new_event_file", lambda folder, step: folder / "events")
    (tmp_path / full).symlink_to(FULL)
    before = threading.active_count()
    with pytest.raises(LuminaError, match=rf"^the disk is full: {tmp_path / full}$"):
        log_one_row(tmp_path)
    assert threading.active_count() == before


def log_one_row(folder):
    with log_to(RunFolder(folder), 0) as log:
        log(ROW)


@pytest.mark.slow
def test_a_disk_that_fills_up_during_training_is_a_one_line_error(tmp_path):
    """A child process with a limit on file sizes logs until a write fails."""
    lines = (
        "import resource, signal, warnings; warnings.simplefilter('ignore')",
        "from pathlib import Path; from lumina_cli.core.errors import LuminaError",
        "from lumina_cli.core.weights.run_folder import RunFolder; from lumina_cli.core.training.loop import log_to",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))",
        "try:",
        f"    with log_to(RunFolder(Path({str(tmp_path)!r})), 0) as log:",
        "        for step in range(1000): log({'step': step, 'stage': 'low', 'loss': 0.5})",
        "except LuminaError as error: print(error)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert re.fullmatch(rf"cannot write {tmp_path}/\S+: File too large\n", done.stdout), done
    assert done.stderr == ""

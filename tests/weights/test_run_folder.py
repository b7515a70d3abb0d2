"""Run folders: checkpoints, metrics, and failing disks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.weights.run_folder import RunFolder, staged_folder


def save(run, step, value=1.0):
    weights = {"w": torch.full((2, 2), value)}
    run.save(
        weights,
        weights,
        {"adamw": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"step": step, "stage": "low", "stage_step": step},
    )


def test_checkpoints_round_trip_and_only_the_last_are_kept(tmp_path):
    run = RunFolder(tmp_path, keep=2)
    for step in (5, 10, 15):
        save(run, step, float(step))
    assert run.steps() == [10, 15]
    assert run.newest_whole() == ({"step": 15, "stage": "low", "stage_step": 15}, {})
    weights, _, optimizer = run.load(15)
    assert weights["w"].tolist() == [[15.0] * 2] * 2
    assert optimizer["adamw"]["state"][0]["step"] == 1


def test_an_unfinished_checkpoint_is_ignored(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5)
    with pytest.raises(AttributeError), staged_folder(run.checkpoints / "0000010") as aside:
        (aside / "state.json").write_text(aside.no_such_thing)
    (run.checkpoints / ".0000020.partial").mkdir()
    assert run.steps() == [5]
    assert not (run.checkpoints / ".0000010.partial").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(LuminaError, match=r"the disk is full: .*model$"),
        staged_folder(tmp_path / "model"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


SAVES = {
    "checkpoint": "RunFolder(path).save({'w': big}, {'w': big}, {'state': big}, {'step': 1})",
    "optimizer": "RunFolder(path).save({'w': small}, {'w': small}, {'state': big}, {'step': 1})",
    "progress": "TrainingProgress(path / 'a.pt', net, torch.optim.SGD(net.parameters()), None).save(1)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVES)
def test_a_refused_write_is_one_line(name, tmp_path):
    lines = (
        "import resource, signal, torch",
        "from pathlib import Path",
        "from lumina_cli.core.errors import LuminaError",
        "from lumina_cli.core.weights.run_folder import RunFolder",
        "from lumina_cli.core.training.progress import TrainingProgress",
        f"path, big, small = Path({str(tmp_path)!r}), torch.zeros(100000), torch.zeros(2)",
        "net = torch.nn.Linear(300, 300)",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))",
        f"try: {SAVES[name]}",
        "except LuminaError as error: print(error)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    wanted = tmp_path / ("a.pt" if name == "progress" else "checkpoints/0000001")
    assert done.stdout == f"cannot write {wanted}: File too large\n", done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_reported_for_every_writer():
    with pytest.raises(LuminaError, match=r"^the disk is full: a$"), disk_errors("a"):
        Path("/dev/full").write_text("x")
    with (
        pytest.raises(LuminaError, match=r"^the disk is full: b$"),
        disk_errors("b"),
        open("/dev/full", "wb") as file,
    ):
        torch.save(torch.zeros(100_000), file)
    with (
        pytest.raises(LuminaError, match=r"^cannot write c: the file could not be written whole$"),
        disk_errors("c"),
    ):
        torch.save(torch.zeros(100_000), "/dev/full")
    with pytest.raises(LuminaError, match=r"^cannot write d: No such file"), disk_errors("d"):
        save_file({"w": torch.zeros(2)}, "/no/such/folder/w.safetensors")


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), disk_errors("a"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_the_old_folder_stays_if_the_rename_fails(tmp_path):
    final = tmp_path / "model"
    final.mkdir()
    (final / "a").write_text("old")
    with (
        pytest.raises(LuminaError, match=r"cannot write .*model: No such file"),
        staged_folder(final) as aside,
    ):
        shutil.rmtree(aside)
    assert (final / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    final = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "a").write_text("old")
    (tmp_path / ".model.partial").mkdir()
    with pytest.raises(KeyboardInterrupt), staged_folder(final):
        raise KeyboardInterrupt
    assert (final / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_checkpoint_is_reported(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5)
    (run.checkpoints / "0000005" / "ema.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LuminaError, match="0000005 cannot be read"):
        run.load(5)


def test_a_checkpoint_from_a_gpu_loads_on_a_cpu(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    with monkeypatch.context() as patch:  # as if the file came from a GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save(run, 5)
    _, _, optimizer = run.load(5)
    step = optimizer["adamw"]["state"][0]["step"]
    assert step == 1
    assert step.device.type == "cpu"


def test_metrics_rewind_to_a_step_and_drop_a_torn_line(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    run.rewind_metrics(2)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_a_model_folder_is_replaced_whole(tmp_path):
    run, frozen = RunFolder(tmp_path / "run"), tmp_path / "frozen"
    (frozen / "vae").mkdir(parents=True)
    (frozen / "vae" / "config.json").write_text("1")
    for text in ("old", "new"):
        with run.model_aside(frozen, ("vae", "scheduler")) as folder:
            (folder / "transformer").write_text(text)
    assert (run.path / "model" / "transformer").read_text() == "new"
    assert (run.path / "model" / "vae" / "config.json").read_text() == "1"
    assert sorted(p.name for p in run.path.iterdir()) == ["model"]

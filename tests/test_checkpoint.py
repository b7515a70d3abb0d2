import json

import pytest
import torch

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats.checkpoint import RunFolder, folder_aside


def save(run, step, value=1.0):
    weights = {"w": torch.full((2, 2), value)}
    run.save(
        weights,
        weights,
        {"adamw": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"step": step, "stage": "low"},
    )


def test_checkpoints_come_back_and_only_the_last_stay(tmp_path):
    run = RunFolder(tmp_path, keep=2)
    for step in (5, 10, 15):
        save(run, step, float(step))
    assert run.steps() == [10, 15]
    assert run.state() == {"step": 15, "stage": "low"}
    weights, _, optimizer = run.load(15)
    assert weights["w"].tolist() == [[15.0] * 2] * 2
    assert optimizer["adamw"]["state"][0]["step"] == 1


def test_a_folder_that_was_not_finished_is_not_seen(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5)
    with pytest.raises(AttributeError), folder_aside(run.checkpoints / "0000010") as aside:
        (aside / "state.json").write_text(aside.no_such_thing)
    (run.checkpoints / ".0000020.partial").mkdir()
    assert run.steps() == [5]
    assert not (run.checkpoints / ".0000010.partial").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(LuminaError, match=r"cannot write .*model: No space left"),
        folder_aside(tmp_path / "model"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_says_so(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5)
    (run.checkpoints / "0000005" / "ema.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LuminaError, match="0000005 cannot be read"):
        run.load(5)


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

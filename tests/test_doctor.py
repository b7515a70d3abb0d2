"""`lumina doctor` and what it looks at."""

import json

import pytest
import torch

from lumina_cli.cli.app import run
from lumina_cli.core import device, doctor
from lumina_cli.core.errors import MissingPart, UsageError


@pytest.mark.filterwarnings("ignore")
def test_doctor_tells_every_part(capsys):
    assert run(["doctor"]) == 0
    found = {row["part"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(found) == ["python", *doctor.NEEDED, *doctor.CHECKS]
    assert all(found[part]["ok"] for part in ("python", *doctor.NEEDED, "processor", "disk"))
    assert all(set(row) == {"part", "ok", "found", "fix"} for row in found.values())


def test_a_broken_part_is_told_with_its_reason(monkeypatch):
    def broken():
        raise ImportError("libfoo.so:\n cannot open")

    row = doctor._row("flash-attn", broken)
    assert row == {
        "part": "flash-attn",
        "ok": False,
        "found": "ImportError: libfoo.so: cannot open",
        "fix": "reinstall or repair flash-attn",
    }


def test_an_extra_that_is_not_installed_is_named():
    found = doctor._optional("no-such-package", "flash", lambda: None)
    assert found == (None, "not installed", "pip install 'lumina-cli[flash]'")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refused(**settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    assert doctor._row("disk", doctor.CHECKS["disk"])["ok"] is False


def test_devices_by_name():
    assert device.pick_device("cpu") == torch.device("cpu")
    assert device.pick_device().type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="unknown device 'gpu'; choose from cpu, cuda"):
        device.pick_device("gpu")
    with pytest.raises(MissingPart, match="device 'cuda:99' needs a CUDA device; this machine has"):
        device.pick_device("cuda:99")


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx512f"}, torch.float32),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"bf16"}, torch.bfloat16),
    ],
)
def test_bf16_where_the_processor_has_it(features, dtype, monkeypatch):
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset(features))
    assert device.compute_dtype("cpu") == dtype


def test_the_machine_is_described():
    found = device.describe_machine()
    assert found["cores"] >= 1
    assert found["torch"] == torch.__version__
    json.dumps(found)

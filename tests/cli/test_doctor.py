"""`lumina doctor` and its checks of the machine."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from lumina_cli.core import device, doctor
from lumina_cli.core.device import pick_device
from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels.attention import flash_missing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_doctor_reports_every_component(lumina):
    code, rows, _ = lumina("doctor")
    assert code == 0
    found = {row["part"]: row for row in rows}
    assert list(found) == ["python", *doctor.REQUIRED, *doctor.CHECKS, "lumina-image-2"]
    assert all(found[part]["ok"] for part in ("python", *doctor.REQUIRED, "processor", "disk"))
    assert all(set(row) == {"part", "ok", "found", "fix"} for row in found.values())


def test_a_broken_component_is_reported_with_its_reason(monkeypatch):
    def broken():
        raise ImportError("libfoo.so:\n cannot open")

    row = doctor._run_check("flash-attn", broken)
    assert row == {
        "part": "flash-attn",
        "ok": False,
        "found": "ImportError: libfoo.so: cannot open",
        "fix": "reinstall or repair flash-attn",
    }


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_not_a_broken_installation(reason, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(reason, os.strerror(reason), "/folder")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    row = doctor._run_check("disk", doctor._check_disk)
    assert row["found"] == f"this folder is not writable: {os.strerror(reason)}"
    assert row["fix"] == "change to a folder that you can write to, or name one with --out and out="
    row = doctor._run_check("triton", refused)  # a cache in the home folder
    assert row["fix"] == "make /folder writable, or free space on its disk, and check again"


def test_a_missing_extra_is_named():
    found = doctor._check_cuda_package("no-such-package", "flash", lambda: None)
    assert found == (None, "not installed", "pip install 'lumina-cli[flash]'")
    assert doctor._check_extra("no-such-package", "s3") == (
        None,
        "not installed",
        "pip install 'lumina-cli[s3]'",
    )
    assert doctor._check_extra("pytest", "dev", "json")[0] is True
    row = doctor._run_check("x", lambda: doctor._check_extra("pytest", "dev", "no_such_module"))
    assert (row["ok"], row["fix"]) == (False, "reinstall or repair x")


def test_a_read_only_folder_fails_the_disk_check(tmp_path, monkeypatch):
    def refused(**settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    assert doctor._run_check("disk", doctor.CHECKS["disk"])["ok"] is False


def test_devices_are_picked_by_name():
    assert device.pick_device("cpu") == torch.device("cpu")
    assert device.pick_device().type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="unknown device 'gpu'; choose from cpu, cuda"):
        device.pick_device("gpu")
    with pytest.raises(
        MissingDependency,
        match=r"device 'cuda:99' (needs a CUDA device; this machine has none$|does not exist; this machine has cuda:0)",
    ):
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
def test_bf16_is_used_if_the_processor_supports_it(features, dtype, monkeypatch):
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset(features))
    assert device.compute_dtype("cpu") == dtype


def test_describe_machine_returns_json():
    found = device.describe_machine()
    assert found["cores"] >= 1
    assert found["torch"] == torch.__version__
    json.dumps(found)


def hub_cache(folder, *files):
    """Write a hub cache, in the layout of huggingface_hub, that has these files of Lumina-Image 2.0."""
    repo = folder / "models--Alpha-VLLM--Lumina-Image-2.0"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    for name in files:
        path = repo / "snapshots" / "abc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


WEIGHTS = [
    f"{part}/{name}"
    for part in ("transformer", "vae", "text_encoder")
    for name in ("config.json", "m.safetensors")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "ok", "found"),
    [
        ([], None, "not in the hub cache"),
        (["model_index.json"], None, "incomplete in the hub cache"),
        (["model_index.json", "tokenizer/tokenizer.json", *WEIGHTS], True, "snapshots/abc"),
    ],
)
def test_a_hub_model_is_ok_only_if_it_is_complete(files, ok, found, tmp_path):
    hub_cache(tmp_path, *files)
    code = "import json; from lumina_cli.core import doctor; from lumina_cli.core.models.hub import find_cached\n"
    code += (
        "print(json.dumps(doctor._run_check('lumina-image-2', lambda: doctor._check_hub_model(find_cached))))"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    row = json.loads(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).stdout)
    assert (row["ok"], row["found"].endswith(found)) == (ok, True)
    assert ok or "about 20 GB" in row["fix"]


def test_doctor_and_training_use_the_same_compiler(monkeypatch, tmp_path):
    (tmp_path / "c++").touch(mode=0o755)  # torch does not use this one by default
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert device.find_compiler() is None
    assert doctor._check_compiler()[0] is None
    monkeypatch.setenv("CXX", "c++")
    assert doctor._check_compiler()[1] == device.find_compiler() == str(tmp_path / "c++")


def test_an_incomplete_model_names_the_missing_component(monkeypatch, tmp_path):
    monkeypatch.setattr("lumina_cli.core.models.locate.ASSETS", tmp_path)
    (tmp_path / "nano" / "vae").mkdir(parents=True)
    row = doctor._run_check("nano", doctor._check_nano)
    assert row["ok"] is False
    assert "transformer/" in row["found"]
    assert row["fix"] == "reinstall lumina-cli"


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "device 'cuda' needs a CUDA device; this machine has none"),
        (0, "cuda:1", "device 'cuda:1' needs a CUDA device; this machine has none"),
        (1, "cuda:1", "device 'cuda:1' does not exist; this machine has cuda:0"),
        (4, "cuda:4", "device 'cuda:4' does not exist; this machine has cuda:0 to cuda:3"),
    ],
)
def test_missing_cuda_devices_are_named(count, name, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(MissingDependency) as caught:
        pick_device(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("available", "reason"), [(False, "this machine has no CUDA device"), (True, "the network is on cpu")]
)
def test_flash_names_what_is_missing(available, reason, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    found = flash_missing(*[torch.zeros(1, 1, 2, 8)] * 3)
    assert found == f"flash needs a CUDA device and `pip install 'lumina-cli[flash]'`; {reason}"

"""Files that we write have the permissions that the user's umask gives to any new file."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.weights.files import write_weights
from lumina_cli.core.weights.lora_files import AdapterFile, write_adapter
from lumina_cli.core.weights.run_folder import RunFolder, staged_folder

TENSORS = {"w": torch.ones(2)}


def write_in_folder(folder):
    with staged_folder(folder / "staged") as aside:
        (aside / "part").mkdir()
        save_file(TENSORS, aside / "part" / "model.safetensors")


def write_private_file(folder):
    with atomic_write(folder / "file") as aside:
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))


def save_checkpoint(folder):
    RunFolder(folder).save(TENSORS, TENSORS, {}, {"step": 1})


WRITERS = {
    "safetensors": lambda folder: write_weights(TENSORS, folder / "w.safetensors"),
    "pickled": lambda folder: write_weights(TENSORS, folder / "w.pth"),
    "LoRA": lambda folder: write_adapter(AdapterFile(folder / "lora.safetensors", TENSORS)),
    "folder": write_in_folder,
    "private": write_private_file,
    "checkpoint": save_checkpoint,
}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_get_the_mode_of_the_umask(tmp_path, writer, umask):
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path)
        assert os.umask(umask) == umask  # the writer left the process's umask as it was
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_more_permissions_than_the_umask_gives_are_kept(tmp_path):
    with atomic_write(tmp_path / "tool") as aside:
        aside.write_text("x")
        aside.chmod(0o755)
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755

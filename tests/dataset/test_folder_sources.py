"""Training directly on a folder of images: its settings, its caption files, and the files that are not read."""

import torch
from PIL import Image

from lumina_cli.core.dataset.latent_store import LatentStore
from lumina_cli.core.dataset.source_fingerprint import fingerprint
from lumina_cli.core.dataset.training_data import TrainingData
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.training.config import Recipe, Stage


def encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(pixels), 16, pixels.shape[2] // 8, pixels.shape[3] // 8)


def test_captions_of_lines_are_cached_and_other_files_are_counted(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jfif", "b.jpg"):
        Image.new("RGB", (64, 64)).save(folder / name, "JPEG")
        (folder / name).with_suffix(".TXT").write_text("a red cup\nthe cup is red\n")
    (folder / "c.heic").write_bytes(b"x")
    stage = Stage(size=64, steps=1, batch=2, lr=1e-3)
    recipe = Recipe(model="nano", data=f"{folder}?lines=each", stages={"low": stage})
    notes = []
    data = TrainingData(recipe, tmp_path / "cache", ASSETS / "nano", notes.append)
    assert list(data.prepare(encode))[-1] == 2
    captions = LatentStore(data.folders[64]).captions
    assert captions == [{"en": {"short": "a red cup", "short_2": "the cup is red"}}] * 2
    assert notes == [
        f"{folder}: not read: 1 image that cannot be used (1 .heic; convert them to JPEG or PNG)"
    ]


def test_a_changed_file_changes_the_fingerprint_of_a_folder_with_settings(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "vae").mkdir()
    source = f"{tmp_path}/photos?lines=each"
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    first = fingerprint(source, tmp_path / "vae")
    (tmp_path / "photos" / "a.txt").write_text("a cup")
    assert fingerprint(source, tmp_path / "vae") != first
    assert fingerprint(f"{tmp_path}/photos", tmp_path / "vae") != fingerprint(source, tmp_path / "vae")

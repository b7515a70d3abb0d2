"""What convert writes can be used: each layout opens again as the same model, by name, folder or file."""

import json
import os
import shutil
import stat

import pytest
import torch
from PIL import Image, ImageChops

from lumina_cli.core.models.convert import find_source
from lumina_cli.core.models.layout import COMPONENTS, missing_files
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.registry import ASSETS, MODELS
from lumina_cli.core.weights.fingerprint import fingerprint

NANO = ASSETS / "nano"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of assembled models of its own."""
    monkeypatch.setenv("LUMINA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sample(lumina, tmp_path):
    """Return a function that generates an image with a model, and returns it."""

    def run_sample(model, frozen=""):
        command = f"sample 'a cup' --model {model} {frozen and f'--frozen {frozen}'} --steps 2 --size 64x64"
        code, rows, err = lumina(f"{command} --out {tmp_path}/out-{len(list(tmp_path.glob('out-*')))}")
        assert code == 0, err
        return Image.open(rows[0]["image"])

    return run_sample


@pytest.fixture
def run_folder(tiny_folder, tmp_path):
    """A run folder whose exported model is the tiny one."""
    shutil.copytree(tiny_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    return tmp_path / "run"


def same(one, other):
    return ImageChops.difference(one, other).getbbox() is None


@pytest.fixture
def named(monkeypatch, tiny_folder):
    """The tiny model under the name `tiny`."""
    monkeypatch.setitem(MODELS, "tiny", f"{__name__}:find_tiny")
    find_tiny.folder = tiny_folder
    return "tiny"


def find_tiny():
    return find_tiny.folder


@pytest.mark.parametrize("kind", ["model folder", "run folder", "name"])
def test_every_kind_of_source_becomes_a_complete_folder(
    tiny_folder, run_folder, named, tmp_path, lumina, sample, kind
):
    source = {"model folder": tiny_folder, "run folder": run_folder, "name": named}[kind]
    code, (row,), err = lumina(f"convert {source} {tmp_path}/new --to diffusers")
    assert (code, err) == (0, "")
    assert (row["source"], row["components"]) == (str(source), list(COMPONENTS))
    assert missing_files(tmp_path / "new") == []
    assert json.loads((tmp_path / "new" / "model_index.json").read_text())["_class_name"] == "Lumina2Pipeline"
    assert not any(path.is_symlink() for path in (tmp_path / "new").rglob("*"))
    assert same(sample(tmp_path / "new"), sample(tiny_folder))


@pytest.mark.parametrize("kind", ["model folder", "run folder", "name"])
def test_every_kind_of_source_becomes_a_checkpoint_and_comes_back(
    tiny_folder, run_folder, named, tmp_path, lumina, sample, kind
):
    source = {"model folder": tiny_folder, "run folder": run_folder, "name": named}[kind]
    code, (row,), err = lumina(f"convert {source} {tmp_path}/all.safetensors --to comfyui --whole")
    assert (code, err, row["components"]) == (0, "", list(COMPONENTS))
    before = sample(tiny_folder)
    assert same(sample(f"{tmp_path}/all.safetensors"), before)
    code, (row,), err = lumina(f"convert {tmp_path}/all.safetensors {tmp_path}/back --to diffusers")
    assert (code, err, row["from"], row["components"]) == (0, "", "comfyui", list(COMPONENTS))
    assert same(sample(tmp_path / "back"), before)


def test_a_run_without_a_checkpoint_is_named(tmp_path, lumina):
    (tmp_path / "recipe.yaml").write_text("{}")
    code, _, err = lumina(f"convert {tmp_path} {tmp_path}/x --to diffusers")
    assert code == 1
    assert "holds 0 indexes and 0 weight files" in err


@pytest.mark.parametrize("to", ["lumina", "official", "comfyui", "diffusers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_single_file_opens_with_frozen(tiny_folder, tmp_path, lumina, sample, to, suffix):
    code, (row,), _ = lumina(f"convert {tiny_folder} {tmp_path}/x{suffix} --to {to}")
    assert (code, row["components"]) == (0, ["transformer"])
    assert same(sample(f"{tmp_path}/x{suffix}", tiny_folder), sample(tiny_folder))


def test_a_transformer_alone_opens_with_frozen_or_becomes_a_model(tiny_folder, tmp_path, lumina, sample):
    code, (row,), _ = lumina(f"convert {tiny_folder}/transformer {tmp_path}/t --to diffusers")
    assert (code, row["components"]) == (0, ["transformer"])
    assert load_transformer(tmp_path / "t").config.sample_size == 8
    code, _, err = lumina(f"sample a --model {tmp_path}/t --explain")
    assert code == 1
    assert "/t contains a transformer without vae and text_encoder" in err
    assert "--frozen" in err
    before = sample(tiny_folder)
    assert same(sample(tmp_path / "t", tiny_folder), before)
    code, (row,), _ = lumina(f"convert {tmp_path}/t {tmp_path}/m --to diffusers --frozen {tiny_folder}")
    assert (code, row["components"]) == (0, list(COMPONENTS))
    assert same(sample(tmp_path / "m"), before)


def test_the_dtype_applies_to_the_transformer(tiny_folder, tmp_path, lumina):
    assert lumina(f"convert {tiny_folder} {tmp_path}/x.safetensors --to comfyui --whole --dtype bf16")[0] == 0
    assert lumina(f"convert {tmp_path}/x.safetensors {tmp_path}/m --to diffusers")[0] == 0
    weights = load_transformer(tmp_path / "m" / "transformer")
    assert weights.dtype == torch.bfloat16
    assert fingerprint(tmp_path / "m") != fingerprint(tiny_folder)


@pytest.mark.slow
def test_a_converted_model_opens_in_diffusers(tmp_path, lumina):
    from diffusers import Lumina2Pipeline

    assert lumina(f"convert nano {tmp_path}/all.safetensors --to comfyui --whole")[0] == 0
    assert lumina(f"convert {tmp_path}/all.safetensors {tmp_path}/m --to diffusers")[0] == 0
    pipe = Lumina2Pipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe("a red ball", num_inference_steps=1, width=64, height=64).images
    assert image.size == (64, 64)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_convert_writes_has_the_mode_of_the_umask(tiny_folder, tmp_path, lumina, umask):
    before = os.umask(umask)
    try:
        for dest, to in (("a.safetensors", "comfyui --whole"), ("b.pth", "official"), ("c", "diffusers")):
            assert lumina(f"convert {tiny_folder} {tmp_path}/new/{dest} --to {to}")[0] == 0
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            "gone x.safetensors --to official",
            1,
            "gone does not exist; expected a weight file, a folder, a hub id, or one",
        ),
        ("{tiny} x.pth --to comfyui --whole", 2, "--whole writes ComfyUI's checkpoint"),
        ("{tiny} x.safetensors --to official --whole", 2, "--whole writes ComfyUI's checkpoint"),
        (
            "{tiny} x.safetensors --to official --frozen nano",
            2,
            "--frozen completes a folder or, with --whole",
        ),
        ("{tiny} x --to diffusers --frozen nano", 2, "is a complete model: omit --frozen"),
    ],
)
def test_bad_usage_is_one_line(tiny_folder, tmp_path, lumina, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, _, err = lumina(f"convert {arguments.format(tiny=tiny_folder)}")
    assert (found, err.count("\n")) == (code, 1)
    assert words in err
    assert not list(tmp_path.glob("x*"))


def test_a_source_that_is_a_name_and_a_folder_is_the_name(monkeypatch, tmp_path):
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_source("nano") == NANO

"""Every model folder opens in diffusers without a dtype, and precomputed features stay valid."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumina_cli.core.dataset.precompute import text_digest
from lumina_cli.core.nextdit.convert import load_transformer, save_transformer
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.weights.fingerprint import fingerprint
from lumina_cli.core.weights.json_files import declare_float32, stored_config
from lumina_cli.core.weights.run_folder import RunFolder

NANO = ASSETS / "nano"
COPIED = ("vae", "text_encoder", "tokenizer", "scheduler", "model_index.json")


def generate_with_diffusers(folder):
    """Generate an image in diffusers from a pipeline that was loaded without a dtype."""
    from diffusers import Lumina2Pipeline

    pipe = Lumina2Pipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert {pipe.transformer.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    (image,) = pipe("a red ball", num_inference_steps=1, width=64, height=64).images
    assert image.size == (64, 64)


def as_stored(folder, dtype, key):
    """Store a text encoder in `dtype` with a config that names it, as transformers saves one."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")}
    settings[key] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


@pytest.mark.slow
def test_the_bundled_model_opens_in_diffusers_without_a_dtype():
    generate_with_diffusers(NANO)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "key"), [(torch.bfloat16, "dtype"), (torch.float16, "torch_dtype"), (torch.float32, "dtype")]
)
def test_an_exported_model_opens_in_diffusers_without_a_dtype(tmp_path, dtype, key):
    frozen = shutil.copytree(
        NANO, tmp_path / "frozen", ignore=shutil.ignore_patterns("captioner", "detector")
    )
    as_stored(frozen / "text_encoder", dtype, key)
    known = text_digest(frozen), (frozen / "text_encoder" / "config.json").read_bytes()
    with RunFolder(tmp_path / "run").model_aside(frozen, COPIED) as folder:
        save_transformer(load_transformer(NANO / "transformer"), folder / "transformer", torch.bfloat16)
    model = tmp_path / "run" / "model"
    generate_with_diffusers(model)
    # features that were computed with the frozen components are those of the exported model
    assert (text_digest(model), stored_config(model / "text_encoder")) == known
    assert fingerprint(model) == fingerprint(frozen)


def test_only_the_data_type_changes(tmp_path):
    text = '{\n "hidden_size": 8,\n "dtype" :"bfloat16", "note": "bfloat16"}'
    (tmp_path / "config.json").write_text(text)
    declare_float32(tmp_path)
    assert (tmp_path / "config.json").read_text() == re.sub(':"bfloat16"', ':"float32"', text)
    declare_float32(tmp_path / "nowhere")  # a component that a folder does not have


def test_features_of_the_bundled_model_stay_valid():
    assert text_digest(NANO) == "2960e7d75613187d"

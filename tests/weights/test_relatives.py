"""Other networks are recognized by their headers, and refused by name with what reads them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.locate import find_model
from lumina_cli.core.nextdit.convert import detect_dialect, from_any, load_transformer, to_dialect
from lumina_cli.core.weights.relatives import find_class, find_relative

BODY = (
    "x_embedder.weight",
    "cap_embedder.0.weight",
    "cap_embedder.1.weight",
    "layers.0.attention.qkv.weight",
    "layers.0.attention.out.weight",
)
DIFFUSERS = (
    "x_embedder.weight",
    "time_caption_embed.timestep_embedder.linear_1.weight",
    "layers.0.attn.to_q.weight",
)

HEADERS = {
    "Z-Image, official": ("Z-Image", (*BODY, "x_pad_token", "cap_pad_token", "layers.0.adaLN_modulation.0.weight")),
    "Z-Image, without pad tokens": ("Z-Image", (*BODY, "layers.0.adaLN_modulation.0.weight")),
    "Z-Image, diffusers": ("Z-Image", ("all_x_embedder.2-1.weight", "cap_embedder.1.weight", "layers.0.attention.to_q.weight")),
    "Z-Image-Omni": ("Z-Image-Omni", (*BODY, "x_pad_token", "siglip_embedder.0.weight")),
    "NewBie": ("NewBie-image", (*BODY, "clip_text_pooled_proj.0.weight", "time_text_embed.1.weight")),
    "OmniGen2": ("OmniGen2", (*DIFFUSERS, "ref_image_patch_embedder.weight", "image_index_embedding")),
    "Boogu": ("Boogu-Image", (*DIFFUSERS, "ref_image_patch_embedder.weight", "double_stream_layers.0.img_instruct_attn.to_q.weight")),
    "Lumina-Next": ("Lumina-Next", ("x_embedder.weight", "cap_embedder.0.weight", "layers.0.attention.wq.weight", "layers.0.attention.wk_y.weight")),
    "Lumina-Next, diffusers": ("Lumina-Next", ("patch_embedder.weight", "layers.0.attn1.to_q.weight", "layers.0.attn2.to_k.weight")),
    "Lumina-DiMOO": ("Lumina-DiMOO", ("model.transformer.wte.weight", "model.transformer.blocks.0.ff_proj.weight")),
    "FLUX": ("FLUX", ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")),
    "FLUX, diffusers": ("FLUX", ("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.attn.to_q.weight")),
    "SDXL": ("Stable Diffusion XL", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    "SDXL, diffusers": ("Stable Diffusion XL", ("down_blocks.1.attentions.0.proj_in.weight", "add_embedding.linear_1.weight")),
    "SD 1.5": ("Stable Diffusion 1 or 2", ("input_blocks.1.1.proj_in.weight", "out.0.weight")),
    "SD 1.5, diffusers": ("Stable Diffusion 1 or 2", ("down_blocks.0.attentions.0.proj_in.weight",)),
    "SD 3": ("Stable Diffusion 3", ("joint_blocks.0.x_block.attn.qkv.weight",)),
    "Gemma": ("a language model", ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")),
    "VAE": ("an autoencoder", ("encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight")),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "_orig_mod."])
@pytest.mark.parametrize("kind", HEADERS)
def test_other_networks_are_refused_by_name(tmp_path, lumina, kind, prefix):
    name, keys = HEADERS[kind]
    tensors = {prefix + key: torch.ones(2, 2) for key in keys}
    assert find_relative(tensors).name == name
    with pytest.raises(LuminaError, match=f"these are the weights of {name}, not of Lumina-Image 2.0; use "):
        from_any(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    code, _, err = lumina(f"convert {tmp_path}/x.safetensors {tmp_path}/y.safetensors --to official")
    assert code == 1
    assert f"x.safetensors: these are the weights of {name}" in err


@pytest.mark.parametrize("option", ["--model {}", "--model nano --lora {}"])
@pytest.mark.parametrize("kind", HEADERS)
def test_sample_names_the_model_of_a_file(tmp_path, lumina, kind, option):
    name, keys = HEADERS[kind]
    save_file({key: torch.ones(2, 2) for key in keys}, tmp_path / "x.safetensors")
    file = option.format(tmp_path / "x.safetensors")
    code, rows, err = lumina(f"sample ball --steps 1 --out {tmp_path}/out {file}")
    assert (code, list(rows), err.count("\n")) == (1, [], 1)
    assert f"these are the weights of {name}, not of Lumina-Image 2.0; use " in err
    assert ("x.safetensors is not a LoRA but a whole model: " in err) == ("--lora" in option)
    assert "a LoRA for" not in err


def test_a_whole_transformer_is_not_a_lora(tmp_path, lumina, tiny_folder):
    weights = to_dialect(load_transformer(tiny_folder / "transformer").state_dict(), "comfyui")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "x.safetensors")
    code, _, err = lumina(
        f"sample ball --model {tiny_folder} --lora {tmp_path}/x.safetensors --out {tmp_path}/out"
    )
    assert code == 1
    assert "its tensors are the weights of a whole transformer; open it with --model" in err


def test_an_all_in_one_file_of_another_model_is_named_by_its_transformer():
    keys = [*HEADERS["Z-Image, official"][1], "vae.decoder.up.0.block.0.conv1.weight"]
    keys = [f"model.diffusion_model.{key}" if "vae" not in key else key for key in keys]
    keys.append("text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj.weight")
    assert find_relative(keys).name == "Z-Image"


@pytest.mark.parametrize("dialect", ["lumina", "official", "diffusers", "comfyui"])
def test_our_own_weights_are_not_a_relative(tiny_folder, dialect):
    weights = to_dialect(load_transformer(tiny_folder / "transformer").state_dict(), dialect)
    assert find_relative(weights) is None
    assert detect_dialect(weights) == dialect
    others = (
        "vae.decoder.up.0.block.0.conv1.weight",
        "text_encoders.gemma2_2b.transformer.model.layers.0.self_attn.q_proj.weight",
    )
    assert find_relative([*weights, *others]) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ZImageTransformer2DModel", "Z-Image"), ("LuminaNextDiT2DModel", "Lumina-Next"), ("FluxTransformer2DModel", "FLUX"),
        ("OmniGen2Transformer2DModel", "OmniGen2"), ("UNet2DConditionModel", "Stable Diffusion 1 or 2"), ("Boogu", "Boogu-Image"),
    ],
)  # fmt: skip
def test_a_folder_of_another_model_is_refused_by_its_class(tmp_path, tiny_folder, kind, name):
    assert find_class(kind).name == name
    assert find_class("Lumina2Pipeline") is find_class("Lumina2Transformer2DModel") is None
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": kind}))
    with pytest.raises(LuminaError, match=f"not of a {kind}; it is of {name}, not of Lumina-Image 2.0; use"):
        load_transformer(folder / "transformer")


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("ZImagePipeline", "Z-Image"),
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("FluxPipeline", "FLUX"),
    ],
)
def test_a_pipeline_of_another_model_is_refused_before_its_files_are_counted(tmp_path, pipeline, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(LuminaError, match=f"is a {pipeline}: of {name}, not of Lumina-Image 2.0"):
        find_model(tmp_path)

"""`lumina convert` on tiny random weights."""

import pytest
import torch

from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.convert import load_transformer, read_weights, save_transformer, write_weights
from lumina_cli.core.weights.lora_files import read_adapter

CONFIG = NextDiTConfig(
    dim=48, num_layers=2, num_refiner_layers=1, num_heads=2, num_kv_heads=1, multiple_of=16, text_dim=40,
    axes_dim=(8, 8, 8),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_transformer(NextDiT(CONFIG), tmp_path / "pipeline" / "transformer")
    return tmp_path / "pipeline"


def test_weights_survive_a_round_trip_through_every_layout(folder, tmp_path, lumina):
    source = folder
    for to, name in [
        ("official", "a.pth"),
        ("comfyui", "b.safetensors"),
        ("lumina", "c.safetensors"),
        ("diffusers", "d"),
    ]:
        code, (row,), err = lumina(f"convert {source} {tmp_path}/{name} --to {to}")
        assert (code, err) == (0, "")
        assert (row["source"], row["to"], row["dtype"]) == (str(source), to, "float32")
        source = tmp_path / name
    before = load_transformer(folder / "transformer").state_dict()
    after = load_transformer(tmp_path / "d").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dtype_changes_the_stored_weights(folder, tmp_path, lumina):
    dest = tmp_path / "x.safetensors"
    assert lumina(f"convert {folder} {dest} --to comfyui --dtype bf16")[0] == 0
    assert {tensor.dtype for tensor in read_weights(dest).values()} == {torch.bfloat16}


def test_nothing_is_overwritten_without_force(folder, tmp_path, lumina):
    dest = tmp_path / "x.safetensors"
    dest.write_text("mine")
    command = f"convert {folder} {dest} --to official"
    assert lumina(command) == (2, [], f"lumina convert: {dest} already exists; use --force to replace it\n")
    assert dest.read_text() == "mine"
    assert lumina(f"{command} --force")[0] == 0


@pytest.mark.parametrize(
    ("dest", "message"),
    [("folder", "must end in .safetensors or .pth"), ("x.bin", "must end in .safetensors or .pth")],
)
def test_the_name_of_dest_must_fit_the_layout(folder, tmp_path, dest, message, lumina):
    code, _, err = lumina(f"convert {folder} {tmp_path}/{dest} --to official")
    assert code == 2
    assert message in err


def test_weights_of_another_network_are_rejected(tmp_path, lumina):
    write_weights({"conv.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    code, _, err = lumina(f"convert {tmp_path}/x.safetensors {tmp_path}/y --to diffusers")
    assert code == 1
    assert err.startswith(
        f"lumina convert: {tmp_path}/x.safetensors: 1 tensors (conv.weight) are not weights of a Next-DiT"
    )
    assert not (tmp_path / "y").exists()


def test_a_missing_tensor_is_named(folder, tmp_path, lumina):
    weights = read_weights(folder / "transformer")
    del weights["norm_out.linear_1.bias"]
    write_weights(weights, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    code, _, err = lumina(f"convert {folder} {tmp_path}/y --to diffusers")
    assert code == 1
    assert "missing 1 tensor" in err


def test_a_missing_source_is_one_line(tmp_path, lumina):
    code, _, err = lumina(f"convert {tmp_path}/gone {tmp_path}/y --to diffusers")
    assert (code, err.count("\n")) == (1, 1)


@pytest.fixture
def lora(tmp_path):
    torch.manual_seed(0)
    tensors = {}
    for name, out in [("to_q", 48), ("to_k", 24), ("to_v", 24), ("to_out.0", 48)]:
        tensors[f"transformer.layers.0.attn.{name}.lora_A.weight"] = torch.randn(2, 48)
        tensors[f"transformer.layers.0.attn.{name}.lora_B.weight"] = torch.randn(out, 2)
    write_weights(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_a_lora_survives_a_round_trip_through_every_layout(lora, tmp_path, lumina):
    source = lora
    for to in ("kohya", "comfyui", "diffusers"):
        dest = tmp_path / f"{to}.safetensors"
        code, (row,), err = lumina(f"convert {source} {dest} --to {to}")
        assert code == 0
        assert (row["source"], row["to"], row["lora_rank"], row["unused"], err) == (
            str(source),
            to,
            6 if to == "comfyui" else row["lora_rank"],
            0,
            "",
        )
        source = dest
    before, after = read_adapter(lora).tensors, read_adapter(source).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unconvertible_tensors_of_a_lora_are_reported(lora, tmp_path, lumina):
    write_weights(read_weights(lora) | {"text_encoder.layers.0.mlp.lora_A.weight": torch.zeros(2)}, lora)
    code, (row,), err = lumina(f"convert {lora} {tmp_path}/x.safetensors --to kohya --dtype bf16")
    assert (code, row["unused"]) == (0, 1)
    name = "text_encoder.layers.0.mlp.lora_A.weight"
    assert err == f"{lora}: 4 of 5 layers are used; not used: 1 tensor ({name}) of a text encoder\n"
    assert {tensor.dtype for tensor in read_weights(tmp_path / "x.safetensors").values()} == {torch.bfloat16}


def test_loras_and_networks_have_their_own_layouts(lora, folder, lumina):
    for arguments, line in [
        (f"{lora} x.safetensors --to official", f"{lora} is a LoRA: it can become diffusers, comfyui, kohya, not official"),
        (f"{lora} x --to diffusers", f"x must end in .safetensors: {lora} is a LoRA"),
        (f"{folder} x.safetensors --to kohya", f"{folder} contains a whole network; --to kohya is for LoRAs"),
    ]:  # fmt: skip
        assert lumina(f"convert {arguments}") == (2, [], f"lumina convert: {line}\n")

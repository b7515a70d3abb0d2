"""`lumina convert` on tiny random weights."""

import json

import pytest
import torch

from lumina_cli.cli.app import run
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


def test_round_trip_through_every_dialect(folder, tmp_path, capsys):
    source = folder
    for to, name in [
        ("official", "a.pth"),
        ("comfyui", "b.safetensors"),
        ("lumina", "c.safetensors"),
        ("diffusers", "d"),
    ]:
        assert run(["convert", str(source), str(tmp_path / name), "--to", to]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["source"], row["to"], row["dtype"]) == (str(source), to, "float32")
        source = tmp_path / name
    before = load_transformer(folder / "transformer").state_dict()
    after = load_transformer(tmp_path / "d").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_precision(folder, tmp_path, capsys):
    dest = tmp_path / "x.safetensors"
    assert run(["convert", str(folder), str(dest), "--to", "comfyui", "--dtype", "bf16"]) == 0
    assert {tensor.dtype for tensor in read_weights(dest).values()} == {torch.bfloat16}


def test_nothing_is_overwritten_without_force(folder, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_text("mine")
    words = ["convert", str(folder), str(tmp_path / "x.safetensors"), "--to", "official"]
    assert run(words) == 2
    assert capsys.readouterr().err.endswith("x.safetensors already exists; use --force to replace it\n")
    assert run([*words, "--force"]) == 0


@pytest.mark.parametrize(
    ("dest", "message"),
    [("folder", "must end in .safetensors or .pth"), ("x.bin", "must end in .safetensors or .pth")],
)
def test_where_weights_can_go(folder, tmp_path, dest, message, capsys):
    assert run(["convert", str(folder), str(tmp_path / dest), "--to", "official"]) == 2
    assert message in capsys.readouterr().err


def test_weights_of_something_else(tmp_path, capsys):
    write_weights({"conv.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert run(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y"), "--to", "diffusers"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("lumina convert: 1 tensors (conv.weight) are not weights of a Next-DiT")
    assert not (tmp_path / "y").exists()


def test_a_missing_tensor_is_named(folder, tmp_path, capsys):
    weights = read_weights(folder / "transformer")
    del weights["norm_out.linear_1.bias"]
    write_weights(weights, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert run(["convert", str(folder), str(tmp_path / "y"), "--to", "diffusers"]) == 1
    assert "missing 1 tensor" in capsys.readouterr().err


def test_a_missing_source(tmp_path, capsys):
    assert run(["convert", str(tmp_path / "gone"), str(tmp_path / "y"), "--to", "diffusers"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def lora(tmp_path):
    torch.manual_seed(0)
    tensors = {}
    for name, out in [("to_q", 48), ("to_k", 24), ("to_v", 24), ("to_out.0", 48)]:
        tensors[f"transformer.layers.0.attn.{name}.lora_A.weight"] = torch.randn(2, 48)
        tensors[f"transformer.layers.0.attn.{name}.lora_B.weight"] = torch.randn(out, 2)
    write_weights(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_a_lora_goes_round_through_every_dialect(lora, tmp_path, capsys):
    source = lora
    for to in ("kohya", "comfyui", "diffusers"):
        dest = tmp_path / f"{to}.safetensors"
        assert run(["convert", str(source), str(dest), "--to", to]) == 0
        out, err = capsys.readouterr()
        row = json.loads(out)
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


def test_what_a_lora_cannot_carry_over_is_said(lora, tmp_path, capsys):
    write_weights(read_weights(lora) | {"text_encoder.layers.0.mlp.lora_A.weight": torch.zeros(2)}, lora)
    assert (
        run(["convert", str(lora), str(tmp_path / "x.safetensors"), "--to", "kohya", "--dtype", "bf16"]) == 0
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["unused"] == 1
    assert err == f"{lora}: not used: 1 tensor (text_encoder.layers.0.mlp.lora_A.weight) of a text encoder\n"
    assert {tensor.dtype for tensor in read_weights(tmp_path / "x.safetensors").values()} == {torch.bfloat16}


def test_loras_and_networks_have_dialects_of_their_own(lora, folder, tmp_path, capsys):
    for words, line in [
        ([str(lora), "x.safetensors", "--to", "official"], f"{lora} is a LoRA: it can become diffusers, comfyui, kohya, not official"),
        ([str(lora), "x", "--to", "diffusers"], f"x must end in .safetensors: {lora} is a LoRA"),
        ([str(folder), "x.safetensors", "--to", "kohya"], f"{folder} contains a whole network; --to kohya is for LoRAs"),
    ]:  # fmt: skip
        assert run(["convert", *words]) == 2
        assert capsys.readouterr().err == f"lumina convert: {line}\n"

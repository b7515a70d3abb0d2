"""LoRA files of other programs: every spelling of a layer is used, and nothing is applied by halves in silence."""

import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import load_transformer
from lumina_cli.core.nextdit.lora.merge import apply_loras
from lumina_cli.core.nextdit.lora.names import find_methods, find_site, is_adapter

ATTENTION = {
    "q": ("to_q", "q_proj", "wq"),
    "v": ("to_v", "v_proj", "wv"),
    "out": ("to_out.0", "to_out", "out", "out_proj", "o_proj", "wo"),
    "qkv": ("qkv", "to_qkv", "qkv_proj"),
}
FEED_FORWARD = {
    "w1": ("w1", "linear_1", "gate_proj"),
    "w2": ("w2", "linear_2", "down_proj"),
    "w3": ("w3", "linear_3", "up_proj"),
}


def factors(module, out, inputs, rank=2, names=("lora_down.weight", "lora_up.weight")):
    """Return a pair of tensors that change a layer."""
    return {f"{module}.{names[0]}": torch.ones(rank, inputs), f"{module}.{names[1]}": torch.ones(out, rank)}


@pytest.mark.parametrize("start", ["lora_unet_layers_1_", "lora_transformer_layers_1_", "lycoris_layers_1_"])
@pytest.mark.parametrize("module", ["attention", "attn"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_flat_spellings_of_attention(start, module, kind):
    for name in ATTENTION[kind]:
        site = find_site(f"{start}{module}_{name.replace('.', '_')}")
        wanted = (
            ("layers.1.attention.out", None)
            if kind == "out"
            else ("layers.1.attention.qkv", None if kind == "qkv" else kind)
        )
        assert site == wanted, name


@pytest.mark.parametrize("start", ["diffusion_model.", "base_model.model.transformer.", "_orig_mod.", ""])
@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_dotted_spellings_of_the_feed_forward(start, kind):
    for name in FEED_FORWARD[kind]:
        assert find_site(f"{start}noise_refiner.0.feed_forward.{name}") == (
            f"noise_refiner.0.feed_forward.{kind}",
            None,
        )


def test_a_mix_of_spellings_is_used_as_a_whole(tiny_folder, tmp_path, lumina):
    """sd-scripts names the output `to_out_0`, but the module `attention`."""
    start = "lora_unet_layers_0_attention"
    tensors = factors(f"{start}_to_q", 24, 24) | factors(f"{start}_to_out_0", 24, 24)
    tensors |= factors("lora_unet_layers_1_mlp_gate_proj", 96, 24)
    save_file(tensors, tmp_path / "x.safetensors")
    model = load_transformer(tiny_folder / "transformer")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    (applied,) = apply_loras(model, [tmp_path / "x.safetensors"])
    assert (applied.modules, applied.unused, applied.note) == (3, (), None)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    names = ("layers.0.attention.qkv", "layers.0.attention.out", "layers.1.feed_forward.w1")
    assert changed == {f"{name}.weight" for name in names}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"lora_unet_layers_0_attention_gate.lora_down.weight": torch.ones(2, 24)}, "1 of 2 layers are used"),
        (factors("lora_unet_layers_0_crossattn_to_q", 24, 24), "1 of 2 layers are used"),
        (
            factors("lora_unet_a", 2, 2) | factors("lora_unet_b", 2, 2),
            "1 of 3 layers are used; not used: 4 tensors",
        ),
    ],
)
def test_what_is_not_used_is_counted_and_named(tiny_folder, tmp_path, lumina, extra, words):
    save_file(factors("lora_unet_layers_0_attention_to_q", 24, 24) | extra, tmp_path / "x.safetensors")
    code, rows, err = lumina(
        f"sample a --model {tiny_folder} --lora {tmp_path}/x.safetensors --steps 2 --out {tmp_path}/o"
    )
    assert (code, len(rows)) == (0, 1)
    assert words in err
    assert sorted(extra)[0] in err
    assert err.count("layers are used") == 1
    code, rows, err = lumina(f"convert {tmp_path}/x.safetensors {tmp_path}/y.safetensors --to diffusers")
    assert (code, rows[0]["unused"]) == (0, len(extra))
    assert words in err


BLOCK = "lycoris_layers_0_attention_out"
METHODS = {
    "LoKr": {
        f"{BLOCK}.lokr_w1": torch.ones(2, 2),
        f"{BLOCK}.lokr_w2_a": torch.ones(12, 1),
        f"{BLOCK}.lokr_w2_b": torch.ones(1, 12),
    },
    "LoHa": {f"{BLOCK}.hada_w1_a": torch.ones(24, 2), f"{BLOCK}.hada_w1_b": torch.ones(2, 24)},
    "OFT": {f"{BLOCK}.oft_blocks": torch.ones(4, 6, 6)},
    "IA3": {f"{BLOCK}.on_input": torch.ones(1), f"{BLOCK}.weight": torch.ones(24, 1)},
    "GLoRA": {f"{BLOCK}.{name}.weight": torch.ones(2, 2) for name in ("a1", "a2", "b1", "b2")},
    "whole-network difference": {"diffusion_model.layers.0.attention.out.diff": torch.ones(24, 24)},
    "difference of norms": {f"{BLOCK}.w_norm": torch.ones(24)},
    "LoRA with biases": {"base_model.model.layers.0.attention.out.lora_B.bias": torch.ones(24)},
    "LoCon of convolutions": {f"{BLOCK}.lora_mid.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a LoRA"])
def test_other_methods_are_named(tiny_folder, tmp_path, lumina, method, beside):
    tensors = dict(METHODS[method])
    if beside:
        tensors |= factors("lora_unet_layers_0_attention_to_q", 24, 24)
    save_file(tensors, tmp_path / "x.safetensors")
    assert is_adapter(tensors)
    before = load_transformer(tiny_folder / "transformer").state_dict()
    model = load_transformer(tiny_folder / "transformer")
    with pytest.raises(LuminaError, match=f"x.safetensors contains {method}: .*lumina reads LoRA and DoRA"):
        apply_loras(model, [tmp_path / "x.safetensors"])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    code, _, err = lumina(f"convert {tmp_path}/x.safetensors {tmp_path}/y.safetensors --to comfyui")
    assert code == 1
    assert f"contains {method}: " in err


def test_a_method_in_the_text_encoder_alone_is_left_out():
    assert find_methods(["lora_te_layers_0_mlp.hada_w1_a"]) == {}


def test_weights_of_a_network_are_not_an_adapter(tiny_folder):
    assert not is_adapter(load_transformer(tiny_folder / "transformer").state_dict())
    assert isinstance(load_transformer(tiny_folder / "transformer"), NextDiT)


@pytest.mark.parametrize(
    ("tensors", "base"),
    [
        (factors("diffusion_model.double_blocks.0.img_attn.qkv", 24, 24), "FLUX"),
        (factors("transformer.single_transformer_blocks.0.attn.to_q", 24, 24), "FLUX"),
        (factors("lora_unet_down_blocks_1_attentions_0_proj_in", 24, 24), "Stable Diffusion"),
        (factors("transformer.transformer_blocks.0.attn.add_q_proj", 24, 24), "Qwen-Image"),
        (factors("diffusion_model.layers.0.attention.to_q", 3840, 3840), "Z-Image"),
        (factors("layers.0.attn.to_q", 2520, 2520), "OmniGen2"),
    ],
)
def test_a_lora_for_another_model_is_named(tiny_folder, tmp_path, tensors, base):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(LuminaError, match=f"a LoRA for {base}"):
        apply_loras(load_transformer(tiny_folder / "transformer"), [tmp_path / "x.safetensors"])

"""The frozen encoders: published prompts, Gemma's features without its last layer, shifted and scaled latents."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

from lumina_cli.core.encoders.prompts import SYSTEM_PROMPTS, full_prompt
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError, UsageError

PROMPTS = ["a red car left of a blue ball", "two cups", ""]


@pytest.fixture(scope="module")
def encoder(tiny_folder):
    return TextEncoder(tiny_folder)


@pytest.fixture(scope="module")
def autoencoder(tiny_folder):
    return Autoencoder(tiny_folder)


def test_system_prompts_are_the_published_ones():
    assert SYSTEM_PROMPTS["real"] == (
        "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
        "based on textual prompts or user prompts."
    )
    assert SYSTEM_PROMPTS["base"] == (
        "You are an assistant designed to generate high-quality images based on user prompts."
    )
    assert list(SYSTEM_PROMPTS) == [
        "base", "align", "real", "aesthetics", "neta", "4grid", "dual-panel", "two-panel", "empty",
    ]  # fmt: skip
    assert full_prompt("a cup", "base") == SYSTEM_PROMPTS["base"] + " <Prompt Start> a cup"
    assert full_prompt("a cup", "empty") == "a cup"
    assert full_prompt("a cup", "Draw anime.") == "Draw anime. <Prompt Start> a cup"


def test_an_unknown_system_prompt_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown system prompt 'algn'; did you mean 'align'\?"):
        full_prompt("a cup", "algn")


def test_features_are_the_second_last_hidden_states(encoder, tiny_folder):
    whole = Gemma2Model.from_pretrained(tiny_folder / "text_encoder", attn_implementation="eager")
    tokens = encoder.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole(**tokens, output_hidden_states=True).hidden_states[-2]
    features, mask = encoder.encode(PROMPTS)
    assert torch.equal(features[mask], expected[mask])
    assert features.shape == (3, 30, 32)
    assert len(encoder.model.layers) == len(whole.layers) - 1


def test_the_soft_cap_is_applied(tiny_folder):
    encoder = TextEncoder(tiny_folder)
    for layer in encoder.model.layers:
        layer.self_attn.q_proj.weight.mul_(100)
    capped, _ = encoder.encode(PROMPTS[:1])
    for layer in encoder.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(capped, encoder.encode(PROMPTS[:1])[0], atol=1e-3)


def test_padding_is_on_the_right_and_does_not_leak(encoder):
    features, mask = encoder.encode(PROMPTS)
    assert mask.sum(dim=1).tolist() == [30, 9, 1]
    for row, prompt in enumerate(PROMPTS):
        alone, real = encoder.encode([prompt])
        assert real.all()
        torch.testing.assert_close(features[row, : alone.shape[1]], alone[0])


def test_the_empty_prompt_is_the_bos_token_alone(encoder):
    assert encoder.tokenizer("")["input_ids"] == [encoder.tokenizer.bos_token_id]
    assert encoder.encode([""])[0].shape == (1, 1, 32)


def test_a_long_prompt_is_truncated_and_the_dropped_tokens_are_counted(tiny_folder):
    encoder = TextEncoder(tiny_folder, max_tokens=12)
    features, _ = encoder.encode(["a red car left of a blue ball"])
    assert features.shape[1] == 12
    assert encoder.dropped(["a red car left of a blue ball", "two cups"]) == [18, 0]


def test_latents_are_the_mode_shifted_and_scaled(autoencoder):
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = autoencoder.encode(pixels)
    assert latents.shape == (2, autoencoder.channels, 32 // autoencoder.factor, 48 // autoencoder.factor)
    with torch.no_grad():
        mode = autoencoder.model.encode(pixels).latent_dist.mode()
        expected = autoencoder.model.decode(mode).sample
    torch.testing.assert_close(latents, (mode - 0.1159) * 0.3611)
    torch.testing.assert_close(autoencoder.decode(latents), expected)


def changed(tiny_folder, tmp_path, part, change):
    """Copy the tiny model and apply `change` to the tensors of one component."""
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("part", "load", "name"),
    [
        ("text_encoder", TextEncoder, "layers.0.mlp.gate_proj.weight"),
        ("vae", Autoencoder, "decoder.conv_norm_out.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_never_initialized(
    part, load, name, tiny_folder, tmp_path, capfd
):
    def lose(tensors):
        del tensors[name]

    folder = changed(tiny_folder, tmp_path, part, lose)
    with pytest.raises(LuminaError) as caught:
        load(folder)
    assert str(caught.value) == f"{folder / part} does not fit this model: missing 1 tensor ({name})"
    shutil.rmtree(folder)
    right = []

    def break_shape(tensors):
        right.append(tuple(tensors[name].shape))
        tensors |= {name: torch.zeros(3), "more": torch.zeros(1)}

    folder = changed(tiny_folder, tmp_path, part, break_shape)
    with pytest.raises(LuminaError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder / part} does not fit this model: unexpected 1 tensor (more); "
        f"misshaped 1 tensor ({name} is (3,), should be {right[0]})"
    )
    assert capfd.readouterr() == ("", "")


def test_removed_layers_may_be_missing_and_an_output_layer_present(encoder, tiny_folder, tmp_path):
    def trim(tensors):
        for name in [name for name in tensors if name.startswith(("layers.2.", "norm."))]:
            del tensors[name]
        tensors["lm_head.weight"] = torch.zeros(400, 32)

    trimmed = TextEncoder(changed(tiny_folder, tmp_path, "text_encoder", trim))
    assert torch.equal(trimmed.encode(PROMPTS)[0], encoder.encode(PROMPTS)[0])


def test_lone_surrogates_are_replaced(tiny_folder):
    """Half of an emoji, as a JSON file may contain it, is rejected by tokenizers."""
    half, whole = "a \ud83d cat", "a \ud83d\ude00 猫"
    assert full_prompt(half, "empty") == "a \ufffd cat"
    assert full_prompt(whole, "empty") == "a 😀 猫"
    assert TokenCounter("nano")([half, "a \ufffd cat"])[0] == TokenCounter("nano")(["a \ufffd cat"])[0]
    features, mask = TextEncoder(tiny_folder).encode([full_prompt(half)])
    assert mask.any()
    assert features.isfinite().all()

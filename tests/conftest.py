"""Fixtures shared by all tests; the main one is a tiny random model folder in diffusers' layout."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CORPUS = ["a red car left of a blue ball", "two green cups", "You are an assistant designed to generate"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Return a model folder with random weights; every part has the class that the real one has."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    write_text_encoder(folder / "text_encoder")
    write_autoencoder(folder / "vae")
    write_transformer(folder)
    write_scheduler(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a Gemma tokenizer whose vocabulary is single letters and bytes."""
    from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += sorted({"▁", *"".join(CORPUS).replace(" ", "")})
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True, padding_side="right")
    tokenizer.save_pretrained(folder)


def write_text_encoder(folder: Path) -> None:
    """Write a Gemma-2 of three layers, its norms disturbed so that leaving one out shows."""
    from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

    config = Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    model = Gemma2Model(config)
    torch.nn.init.normal_(model.norm.weight)
    model.save_pretrained(folder)


def write_autoencoder(folder: Path) -> None:
    """Write a 16-channel, 8x AutoencoderKL without quantisation convolutions, as FLUX's is."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159, sample_size=64,
    ).save_pretrained(folder)  # fmt: skip


def write_transformer(folder: Path) -> None:
    """Write a Next-DiT of two layers, all weights random: at its own initialisation it would draw nothing."""
    from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
    from lumina_cli.core.nextdit.convert import save_transformer

    config = NextDiTConfig(
        dim=24, num_layers=2, num_refiner_layers=1, num_heads=2, num_kv_heads=1, multiple_of=16, text_dim=32,
        axes_dim=(4, 4, 4), axes_len=(300, 64, 64), sample_size=8,
    )  # fmt: skip
    model = NextDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_transformer(model, folder / "transformer")


def write_scheduler(folder: Path) -> None:
    """Write the scheduler's config and the index that names every part's class."""
    from lumina_cli.core.flow.path import scheduler_config
    from lumina_cli.core.training.loop import MODEL_INDEX

    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_config(6.0)))
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))


@pytest.fixture
def lumina(capsys) -> Callable[..., tuple[int, list[dict] | str, str]]:
    """Return a function that runs one command line, without the word `lumina`, in this process.

    The command is split as a shell splits it. The function returns (exit code, stdout, stderr); stdout is a
    list of rows if every line of it is a JSON object (so [] if there is none), else text.
    """

    def run_command(command: str) -> tuple[int, list[dict] | str, str]:
        from lumina_cli.cli.app import run

        capsys.readouterr()
        code = run(shlex.split(command))
        out, err = capsys.readouterr()
        rows = all(line.startswith("{") and line.endswith("}") for line in out.splitlines())
        return code, [json.loads(line) for line in out.splitlines()] if rows else out, err

    return run_command


@pytest.fixture(scope="module")
def no_power_cut():
    """A killed process loses nothing that the system has, so nobody waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield

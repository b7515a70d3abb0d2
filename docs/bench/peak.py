"""Peak memory of generating an image on the CPU, with lumina and with diffusers, for the published sizes.

    python docs/bench/peak.py FOLDER [--size 512]

writes a model folder with random bfloat16 weights to FOLDER unless it exists (11 GB), then generates an image
with one guided Euler step, with each program in its own process. One row per program: "peak_gib" is the peak
resident memory of the process, "idle_gib" its memory before loading the model.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

NANO = Path(__file__).parents[2] / "lumina_cli" / "assets" / "nano"
PROMPT = "a red car left of a blue ball"


def write_folder(folder: Path) -> None:
    """The published shapes: Next-DiT of 2.6B, Gemma-2 of 2.6B, an autoencoder of 84M; all numbers drawn."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

    from lumina_cli.core.bench.networks import random_network
    from lumina_cli.core.nextdit import save_transformer

    for part in ("tokenizer", "scheduler"):
        shutil.copytree(NANO / part, folder / part)
    shutil.copy(NANO / "model_index.json", folder)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=16, sample_size=1024,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    config = Gemma2Config(
        vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    Gemma2Model(config).save_pretrained(folder / "text_encoder")
    torch.set_default_dtype(torch.float32)
    save_transformer(random_network("lumina-image-2", torch.bfloat16), folder / "transformer")


def draw(side: str, folder: Path, size: int) -> dict:
    """Generate one image with one program and return its peak memory."""
    import torch

    from lumina_cli.core.sampling.pipeline import load_pipeline

    idle = status("VmRSS")
    if side == "lumina":
        pipe = load_pipeline(folder, "cpu")
        pipe(PROMPT, size=size, solver="euler", steps=1, guide_until=1.0)
    else:
        from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

        pipe = Lumina2Pipeline.from_pretrained(folder, dtype=torch.bfloat16)
        pipe(PROMPT, width=size, height=size, num_inference_steps=1)
    return {"side": side, "size": size, "peak_gib": round(status("VmHWM"), 2), "idle_gib": round(idle, 2)}


def status(field: str) -> float:
    """GiB of this process as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--side", choices=("lumina", "diffusers", "write"), help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.side == "write":
        write_folder(said.folder)
    elif said.side:
        print(json.dumps(draw(said.side, said.folder, said.size)))
    else:
        sides = ["lumina", "diffusers"]
        for side in sides if (said.folder / "transformer").is_dir() else ["write", *sides]:
            words = [str(said.folder), "--size", str(said.size), "--side", side]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()

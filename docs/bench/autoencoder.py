"""Measures the shipped autoencoder on scenes that no training saw: `python docs/bench/autoencoder.py`."""

import numpy as np
import torch

from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.sampling.pipeline import load_pipeline

SEED, SCENES, GROUP = 4242, 240, 24


def main() -> None:
    vae, ratios = load_pipeline("nano").vae, []
    for start in range(0, SCENES, GROUP):
        pictures = render([draw_scene(SEED, start + i) for i in range(GROUP)], 128)
        levels = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures]))
        pixels = levels.permute(0, 3, 1, 2) / 127.5 - 1
        error = (vae.decode(vae.encode(pixels)).clamp(-1, 1) - pixels).square().mean((1, 2, 3))
        ratios += (10 * torch.log10(4 / error)).tolist()
    print(f"PSNR of {SCENES} scenes: mean {np.mean(ratios):.2f} dB, lowest {np.min(ratios):.2f} dB")


if __name__ == "__main__":
    main()

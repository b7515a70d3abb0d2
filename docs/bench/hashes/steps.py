"""Steps in Python between the commands, and the public Python functions. Runs in the working folder.

python hashes/steps.py NAME [ARGUMENT ...]
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TINY = {
    "dim": 48, "num_layers": 3, "num_refiner_layers": 2, "num_heads": 3, "num_kv_heads": 1, "multiple_of": 16,
    "text_dim": 40, "axes_dim": (8, 4, 4), "axes_len": (300, 512, 512),
}  # fmt: skip


def random_tensor(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return a float32 tensor that depends on the shape and the seed only."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def tiny_model():
    """Return a small NextDiT whose weights depend on their names' order only."""
    from lumina_cli.core.nextdit import NextDiT, NextDiTConfig

    model = NextDiT(NextDiTConfig(**TINY))
    state = {
        name: random_tensor(*tensor.shape, seed=number, scale=0.1)
        for number, (name, tensor) in enumerate(sorted(model.state_dict().items()))
    }
    model.load_state_dict(state)
    return model.eval()


def save(folder: str, arrays: dict[str, object]) -> None:
    """Write arrays to FOLDER/NAME.npy, and dicts of tensors to FOLDER/NAME.npz."""
    Path(folder).mkdir(parents=True)
    for name, array in arrays.items():
        if isinstance(array, dict):
            np.savez(Path(folder, name), **{key: tensor.detach().numpy() for key, tensor in array.items()})
            continue
        np.save(
            Path(folder, name), array.detach().numpy() if isinstance(array, Tensor) else np.asarray(array)
        )


def load_nano(folder: str) -> None:
    """Generate images through `lumina_cli.load`."""
    from lumina_cli import load

    pipe = load("nano")
    first = pipe("a red car left of a blue ball", seed=7, steps=4)
    more = pipe(["a green cube", "a boat"], seed=3, count=2, size=(96, 160), solver="dpm", steps=3)
    save(folder, {f"image-{number}": np.asarray(image) for number, image in enumerate([*first, *more])})


def run_network(folder: str) -> None:
    """Run NextDiT forward and backward on one batch, and on latents of mixed sizes."""
    from lumina_cli.core.nextdit import NextDiT, NextDiTConfig

    model = tiny_model()
    text, mask = random_tensor(2, 9, 40, seed=1), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    t = torch.tensor([0.2, 0.7])
    latents = random_tensor(2, 16, 8, 12, seed=2)
    velocity = model(latents, t, text, mask)
    velocity.square().mean().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    found = {"velocity": velocity, "gradients": gradients}
    with torch.no_grad():
        mixed = model([random_tensor(16, 8, 8, seed=3), random_tensor(16, 12, 6, seed=4)], t, text, mask)
        found |= {f"mixed-{number}": each for number, each in enumerate(mixed)}
        rounded = tiny_model().bfloat16()
        found["bfloat16"] = rounded(latents.bfloat16(), t, text.bfloat16(), mask).float()
    torch.manual_seed(0)
    found["initial"] = NextDiT(NextDiTConfig(**TINY)).state_dict()
    save(folder, found)


def run_plans(folder: str) -> None:
    """Draw latents of the tiny network under plans that cover every solver and kind of guidance."""
    from lumina_cli.core.flow import Plan
    from lumina_cli.core.sampling import draw_latents

    model = tiny_model()
    noise = random_tensor(2, 16, 8, 8, seed=5)
    text, null = random_tensor(2, 6, 40, seed=6), random_tensor(1, 1, 40, seed=7)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    plans = {
        name: {"solver": name, "steps": 5} for name in ("euler", "midpoint", "heun", "rk4", "dpm", "unipc")
    }
    plans |= {
        "unguided": {"guidance": 1.0, "steps": 3},
        "row": {"renorm": "row", "guide_until": 1.0, "steps": 3},
        "off": {"renorm": None, "guide_until": 1.0, "steps": 3},
        "data": {"renorm_of": "data", "guide_until": 1.0, "steps": 3},
        "apg": {"guide": "apg", "guide_until": 1.0, "parallel": 0.3, "push_limit": 2.0, "steps": 3},
        "zero": {"guide": "cfg-zero", "guide_until": 1.0, "steps": 3},
        "sigma": {"guide_unit": "sigma", "guide_until": 0.6, "guide_from": 0.1, "steps": 5},
        "share": {"guide_unit": "steps", "guide_until": 0.5, "steps": 6, "solver": "euler", "shift": 2.5},
        "cached": {"cache": "first:0.5", "steps": 6},
    }
    found = {}
    for name, settings in plans.items():
        found[name] = draw_latents(model, noise, text, mask, null, None, Plan(**settings))
    save(folder, found)


def run_convert(folder: str) -> None:
    """Translate the tiny network's weights to every dialect and back."""
    from safetensors.torch import save_file

    from lumina_cli.core.nextdit import convert

    Path(folder).mkdir(parents=True)
    state = tiny_model().state_dict()
    for name in ("official", "diffusers", "comfyui"):
        theirs = getattr(convert, f"to_{name}")(state)
        ours = getattr(convert, f"from_{name}")(theirs)
        for kind, weights in ((f"to-{name}", theirs), (f"from-{name}", ours)):
            copies = {key: tensor.clone().contiguous() for key, tensor in weights.items()}
            save_file(copies, Path(folder, f"{kind}.safetensors"))


def write_lora(model: str, out: str) -> None:
    """Write a random LoRA of rank 2 for the network of a model folder, in the names of diffusers."""
    from safetensors.torch import save_file

    config = json.loads(Path(model, "transformer", "config.json").read_text(encoding="utf-8"))
    width, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_kv_heads"]
    rows = {
        "to_q": width,
        "to_k": width * groups // heads,
        "to_v": width * groups // heads,
        "to_out.0": width,
    }
    weights = {}
    for layer in range(2):
        for number, (name, height) in enumerate(rows.items()):
            module, seed = f"transformer.layers.{layer}.attn.{name}", 10 * layer + number
            weights[f"{module}.lora_A.weight"] = random_tensor(2, width, seed=seed, scale=0.1)
            weights[f"{module}.lora_B.weight"] = random_tensor(height, 2, seed=100 + seed, scale=0.1)
    save_file(weights, out)


def damage(source: str, dest: str) -> None:
    """Copy a folder of shards and change one byte in the middle of its first tar."""
    shutil.copytree(source, dest)
    path = Path(dest, "000000.tar")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def main() -> None:
    """Run one step by its name."""
    name, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    steps = (load_nano, run_network, run_plans, run_convert, write_lora, damage)
    {step.__name__: step for step in steps}[name](*arguments)


if __name__ == "__main__":
    main()

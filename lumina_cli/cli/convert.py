"""`lumina convert`: weights of a Next-DiT, or a LoRA for it, from one tool's layout to another's."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json
from lumina_cli.core.errors import UsageError


class Dialect(StrEnum):
    """Tool whose tensor names and file layout are used."""

    lumina = "lumina"
    official = "official"
    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


class Precision(StrEnum):
    """Floating-point format of stored weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors or .pth file, or a model folder.")],
    dest: Annotated[
        Path, typer.Argument(help="A .safetensors or .pth file to write; for diffusers also a folder.")
    ],
    to: Annotated[Dialect, typer.Option(help="Format to convert to.")],
    dtype: Annotated[
        Precision | None, typer.Option(help="Data type of the written weights. Default: unchanged.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DEST if it exists.")] = False,
    json: Json = False,
) -> None:
    """Convert weights or a LoRA between formats.

    The formats are those of lumina, the official code, diffusers, ComfyUI and kohya (LoRAs only).

    Examples:

        lumina convert runs/first/model transformer.safetensors --to comfyui
        lumina convert consolidated.00-of-01.pth transformer --to diffusers --dtype bf16
        lumina convert lora.safetensors lora-kohya.safetensors --to kohya
    """
    if dest.exists() and not force:
        raise UsageError(f"{dest} already exists; use --force to replace it")
    if dest.suffix not in (".safetensors", ".pth") and to is not Dialect.diffusers:
        raise UsageError(f"{dest} must end in .safetensors or .pth; only diffusers stores weights in folders")
    output.write_rows(iter([_convert_weights(source, dest, to, dtype)]), json)


def _convert_weights(source: Path, dest: Path, to: Dialect, dtype: Precision | None) -> dict:
    """Read weights, check them against the network's shapes, rename and write them; return a row."""
    output.show_status(f"reading {source}")
    import torch

    from lumina_cli.core.nextdit import convert
    from lumina_cli.core.nextdit.lora.names import is_adapter

    folder = source / "transformer" if (source / "transformer").is_dir() else source
    weights = convert.read_weights(folder)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    if is_adapter(weights):
        return _convert_lora(source, dest, to, torch_dtype)
    if to is Dialect.kohya:
        raise UsageError(f"{source} contains a whole network; --to kohya is for LoRAs")
    found = convert.detect_dialect(weights, source)
    weights = convert.from_any(weights)
    config, model = _build_network(folder, weights)
    convert.check_state_dict(model, weights, str(source))
    if torch_dtype is not None:
        weights = {name: tensor.to(torch_dtype) for name, tensor in weights.items()}
    if dest.suffix in (".safetensors", ".pth"):
        convert.write_weights(convert.to_dialect(weights, to, config), dest)
    else:
        model.load_state_dict(weights, assign=True)
        convert.save_transformer(model, dest)
    return {
        "source": str(source),
        "from": found,
        "dest": str(dest),
        "to": to.value,
        "tensors": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})),
    }


def _build_network(folder: Path, weights: dict) -> tuple[Any, Any]:
    """Return (config, network on the meta device), from config.json or from the shapes of the weights."""
    import torch

    from lumina_cli.core.nextdit import NextDiT, convert
    from lumina_cli.core.weights.json_files import read_json

    if (folder / "config.json").is_file():
        config = convert.config_from_diffusers(read_json(folder / "config.json"))
    else:
        config = convert.infer_config({name: tuple(tensor.shape) for name, tensor in weights.items()})
    with torch.device("meta"):
        return config, NextDiT(config)


def _convert_lora(source: Path, dest: Path, to: Dialect, dtype: Any) -> dict:
    """Convert a LoRA, to a torch.dtype unless None; print a note about tensors that `to` cannot represent."""
    from lumina_cli.core.nextdit.lora.merge import convert_lora

    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} must end in .safetensors: {source} is a LoRA")
    row, unused = convert_lora(source, dest, to.value, dtype)
    if unused:
        output.write_note(unused)
    return row

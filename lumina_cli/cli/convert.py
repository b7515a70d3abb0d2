"""`lumina convert`: the weights of a Next-DiT, or a LoRA for it, from one tool's names to another's."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.core.errors import UsageError


class Dialect(StrEnum):
    """Whose names the tensors have."""

    lumina = "lumina"
    official = "official"
    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


class Precision(StrEnum):
    """How a number is stored."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors or .pth file, or a folder with weights.")],
    dest: Annotated[Path, typer.Argument(help="A .safetensors or .pth file; a folder too for diffusers.")],
    to: Annotated[Dialect, typer.Option(help="The tool that shall read it.")],
    dtype: Annotated[
        Precision | None, typer.Option(help="Store the numbers so; default: as they are.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at DEST.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")] = False,
) -> None:
    """Convert weights or a LoRA between layouts. For lumina, the official code, diffusers, ComfyUI, kohya."""
    if dest.exists() and not force:
        raise UsageError(f"{dest} exists already; --force replaces it")
    if dest.suffix not in (".safetensors", ".pth") and to is not Dialect.diffusers:
        raise UsageError(f"{dest} must end in .safetensors or .pth; only diffusers has weights in folders")
    output.write_rows(iter([_convert(source, dest, to, dtype)]), json)


def _convert(source: Path, dest: Path, to: Dialect, dtype: Precision | None) -> dict:
    """Read, check against the network's shapes, translate and write; return a row that says what was done."""
    import torch

    from lumina_cli.core.nextdit import NextDiT, convert
    from lumina_cli.core.nextdit.lora.formats import is_adapter
    from lumina_cli.core.weights.json_files import read_json

    folder = source / "transformer" if (source / "transformer").is_dir() else source
    weights = convert.read_weights(folder)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    if is_adapter(weights):
        return _convert_lora(source, dest, to, kind)
    if to is Dialect.kohya:
        raise UsageError(f"{source} holds a whole network; --to kohya is for LoRAs")
    found = convert.detect_dialect(weights)
    weights = convert.from_any(weights)
    if (folder / "config.json").is_file():
        config = convert.config_from_diffusers(read_json(folder / "config.json"))
    else:
        config = convert.infer_config({name: tuple(tensor.shape) for name, tensor in weights.items()})
    with torch.device("meta"):
        model = NextDiT(config)
    convert.check_state_dict(model, weights, str(source))
    if kind is not None:
        weights = {name: tensor.to(kind) for name, tensor in weights.items()}
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


def _convert_lora(source: Path, dest: Path, to: Dialect, kind: object) -> dict:
    """The same for a LoRA, in `kind`, a torch.dtype or None; says on stderr what cannot be carried over."""
    from lumina_cli.core.nextdit.lora.merge import convert_lora

    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} must end in .safetensors: {source} is a LoRA")
    row, unused = convert_lora(source, dest, to.value, kind)
    if unused:
        output.note(unused)
    return row

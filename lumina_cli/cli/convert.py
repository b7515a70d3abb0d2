"""`lumina convert`: weights of a Next-DiT, or a LoRA for it, from one tool's layout to another's."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.options import Json
from lumina_cli.core.errors import UsageError

SUFFIXES = (".safetensors", ".pth")


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
    source: Annotated[
        str,
        typer.Argument(
            help="A .safetensors or .pth file, a model or run folder, the name of a model, or a hub id."
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(help="A .safetensors or .pth file to write; for diffusers also a folder.")
    ],
    to: Annotated[Dialect, typer.Option(help="Format to convert to.")],
    dtype: Annotated[
        Precision | None,
        typer.Option(help="Data type of the written transformer or LoRA. Default: unchanged."),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="For comfyui: also write the autoencoder and the text encoder, as one checkpoint."
        ),
    ] = False,
    frozen: Annotated[
        str | None,
        typer.Option(
            help="Model that provides the autoencoder, text encoder and tokenizer if SOURCE is a transformer "
            "alone."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DEST if it exists.")] = False,
    json: Json = False,
) -> None:
    """Convert weights or a LoRA between formats.

    The formats are those of lumina, the official code, diffusers, ComfyUI and kohya (LoRAs only). A diffusers
    folder is a complete model if SOURCE has all components or --frozen provides them, else the transformer.

    Examples:

        lumina convert runs/first/model checkpoint.safetensors --to comfyui --whole
        lumina convert checkpoint.safetensors model --to diffusers
        lumina convert consolidated.pth model --to diffusers --frozen lumina-image-2
        lumina convert lora.safetensors lora-kohya.safetensors --to kohya
    """
    if dest.exists() and not force:
        raise UsageError(f"{dest} already exists; use --force to replace it")
    if dest.suffix not in SUFFIXES and to is not Dialect.diffusers:
        raise UsageError(f"{dest} must end in .safetensors or .pth; only diffusers stores weights in folders")
    if whole and (to is not Dialect.comfyui or dest.suffix != ".safetensors"):
        raise UsageError("--whole writes ComfyUI's checkpoint: add --to comfyui and name a .safetensors file")
    if frozen is not None and dest.suffix in SUFFIXES and not whole:
        raise UsageError("--frozen completes a folder or, with --whole, a ComfyUI checkpoint")
    output.write_rows(iter([_convert(source, dest, to, dtype, whole, frozen)]), json)


def _convert(
    name: str, dest: Path, to: Dialect, dtype: Precision | None, whole: bool, frozen: str | None
) -> dict:
    """Convert a LoRA or the weights of a model; return a row."""
    import torch

    from lumina_cli.core.models.convert import convert_model, find_source
    from lumina_cli.core.nextdit.lora.names import is_adapter
    from lumina_cli.core.weights.lora_files import read_names

    source = find_source(name)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    if is_adapter(read_names(source)):
        return _convert_lora(source, dest, to, torch_dtype)
    if to is Dialect.kohya:
        raise UsageError(f"{source} contains a whole network; --to kohya is for LoRAs")
    return convert_model(source, dest, to.value, torch_dtype, whole, frozen) | {"source": name}


def _convert_lora(source: Path, dest: Path, to: Dialect, dtype: object) -> dict:
    """Convert a LoRA, to a torch.dtype unless None; print a note about tensors that `to` cannot represent."""
    from lumina_cli.core.nextdit.lora.merge import convert_lora

    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} must end in .safetensors: {source} is a LoRA")
    row, unused = convert_lora(source, dest, to.value, dtype)
    if unused:
        output.write_note(unused)
    return row

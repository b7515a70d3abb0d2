"""Conversion of models: a transformer or a whole pipeline, between the layouts of several programs."""

from pathlib import Path

import torch

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models.assemble import assemble_model, transformer_config, write_model
from lumina_cli.core.models.components import find_components
from lumina_cli.core.models.hub import HUB_ID
from lumina_cli.core.models.layout import COMPONENTS, newest_model
from lumina_cli.core.models.locate import find_model
from lumina_cli.core.models.single_file import FileParts, read_single_file, write_single_file
from lumina_cli.core.nextdit.convert import (
    check_state_dict,
    detect_dialect,
    empty_model,
    save_transformer,
    to_dialect,
)
from lumina_cli.core.registry import MODELS
from lumina_cli.core.weights.files import write_weights
from lumina_cli.core.weights.lora_files import read_names
from lumina_cli.core.weights.run_folder import staged_folder

Folder = Path | None


def find_source(name: str) -> Path:
    """Return the file or folder to convert: a path, the newest model of a run, or a model by name or hub id.

    Raises:
        LuminaError: if `name` is none of these, or if a named model is incomplete or cannot be downloaded.
    """
    path = Path(name)
    if name not in MODELS and path.exists():
        return newest_model(path)
    if name in MODELS or (HUB_ID.fullmatch(name) and not path.suffix):
        return find_model(name)
    known = ", ".join(MODELS.names())
    raise LuminaError(f"{name} does not exist; expected a weight file, a folder, a hub id, or one of {known}")


def convert_model(
    source: Path,
    dest: Path,
    to: str,
    dtype: torch.dtype | None = None,
    whole: bool = False,
    frozen: str | None = None,
) -> dict:
    """Write the transformer of `source`, and the other components if the layout has them; return a row.

        source   a weight file, or a folder of weights or of a model
        dest     the file or folder to write
        to       a key of DIALECTS
        dtype    of the written transformer; None: unchanged
        whole    write all components into one file
        frozen   model that provides the components that `source` lacks

    Raises:
        UsageError: if `frozen` is given for a complete model.
        LuminaError: if a file cannot be read, a component is missing, or writing fails.
    """
    complete = all((source / name).is_dir() for name in COMPONENTS)
    if complete and frozen is not None:
        raise UsageError(f"{source} is a complete model: omit --frozen")
    weights = source / "transformer" if (source / "transformer").is_dir() else source
    parts = read_single_file(weights)
    config = transformer_config(parts, source)
    check_state_dict(empty_model(config), parts.transformer, str(source))
    found = detect_dialect(read_names(weights), source)
    if dtype is not None:
        parts.transformer.update({name: one.to(dtype) for name, one in parts.transformer.items()})
    if whole:
        folder = source if complete else assemble_model(source, frozen)
        write_single_file(folder, parts.transformer, dest)
    elif dest.suffix in (".safetensors", ".pth"):
        write_weights(to_dialect(parts.transformer, to, config), dest)
    else:
        _write_folder(parts, dest, source, source if complete else None, frozen)
    tensors = parts.transformer.values()
    return {
        "source": str(source),
        "from": found,
        "dest": str(dest),
        "to": to,
        "tensors": len(parts.transformer),
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        "components": list(COMPONENTS) if whole else _components(dest),
    }


def _write_folder(parts: FileParts, dest: Path, source: Path, model: Folder, frozen: str | None) -> None:
    """Write a model folder if all components are known, else the folder of a transformer."""
    donor = find_components(frozen) if frozen is not None else model
    if donor is None and not (parts.vae and parts.text_encoder):
        network = empty_model(transformer_config(parts, source))
        network.load_state_dict(parts.transformer, assign=True)
        save_transformer(network, dest)
        return
    with staged_folder(dest) as aside:
        write_model(parts, aside, source, donor, link=False)


def _components(dest: Path) -> list[str]:
    """Return the components in a folder that was written; a file or a transformer's folder has one."""
    return [name for name in COMPONENTS if (dest / name).is_dir()] or ["transformer"]

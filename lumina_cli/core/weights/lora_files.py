"""LoRA files: tensors by name, the metadata of the file header, and the config of peft."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.limits import parse_json
from lumina_cli.core.weights.content import SAFETENSORS, check_content
from lumina_cli.core.weights.files import read_weights
from lumina_cli.core.weights.json_files import read_json, summarize_error

FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
)  # of diffusers, of peft
# header key under which diffusers stores peft's config; each key of it starts with "transformer."
CONFIG = "lora_adapter_metadata"


@dataclass(frozen=True)
class AdapterFile:
    """The content of a LoRA file.

    tensors   by their names in the file
    header    metadata of the file header, as a trainer stored it, without the config
    config    peft's settings of the transformer (r, lora_alpha, use_rslora...); empty if unspecified
    """

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict)
    config: dict = field(default_factory=dict)


def read_adapter(path: str | Path) -> AdapterFile:
    """Read a LoRA: a .safetensors or pickled file (weights_only), or a folder of diffusers or peft.

    Raises:
        LuminaError: if the file is missing, broken, or does not hold tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_file(path)
    tensors = read_weights(path)
    if path.suffix not in SAFETENSORS:
        return AdapterFile(path, tensors)
    header = read_header(path)
    packed = header.pop(CONFIG, None)
    config = path.with_name("adapter_config.json")
    if packed is not None:
        return AdapterFile(path, tensors, header, _unpack(packed, path))
    if path.name == "adapter_model.safetensors" and config.is_file():
        return AdapterFile(path, tensors, header, read_json(config))
    return AdapterFile(path, tensors, header)


def _only_file(folder: Path) -> Path:
    """Return the LoRA file in a folder: one of FILES, or the only .safetensors file."""
    files = sorted(folder.glob("*.safetensors"))
    files = [folder / name for name in FILES if folder / name in files][:1] or files
    if len(files) != 1:
        raise LuminaError(f"{folder} holds {len(files)} .safetensors files; give the path of the LoRA file")
    return files[0]


def read_names(path: str | Path) -> dict[str, None]:
    """Return the tensor names in a file, or in the files of a folder of weights.

    Raises:
        LuminaError: if it cannot be read; see `read_weights`.
    """
    path = Path(path)
    weights = path / "transformer" if (path / "transformer").is_dir() else path
    if weights.suffix not in SAFETENSORS or not weights.is_file():
        return dict.fromkeys(read_weights(weights))
    check_content(weights)
    try:
        with safe_open(weights, "pt") as file:
            return dict.fromkeys(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise LuminaError(f"{path} is not a readable safetensors file: {summarize_error(error)}") from error


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a .safetensors file, without the "format" that torch adds."""
    try:
        with safe_open(path, "pt") as file:
            words = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise LuminaError(f"{path} is not a readable safetensors file: {summarize_error(error)}") from error
    words.pop("format", None)
    return words


def write_adapter(adapter: AdapterFile) -> None:
    """Write a LoRA as a .safetensors file, whole or not at all.

    Raises:
        LuminaError: if writing fails.
    """
    header = {"format": "pt", **adapter.header}
    if adapter.config:
        packed = {f"transformer.{name}": value for name, value in adapter.config.items()}
        header[CONFIG] = json.dumps(packed, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in adapter.tensors.items()}
    with disk_errors(adapter.path), atomic_write(adapter.path) as aside:
        save_file(tensors, aside, metadata=header)


def _unpack(packed: str, path: Path) -> dict:
    """Return the settings of the transformer from a diffusers header, which may cover other components."""
    try:
        words = parse_json(packed)
    except ValueError as error:
        raise LuminaError(f"{path}: the {CONFIG} in its header is not JSON") from error
    if not isinstance(words, dict):
        raise LuminaError(f"{path}: the {CONFIG} in its header is not a JSON object")
    start = "transformer."
    return {name.removeprefix(start): value for name, value in words.items() if name.startswith(start)}

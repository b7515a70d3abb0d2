"""JSON files of model folders: configs, and the indexes of sharded weights. Does not import torch."""

import json
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        LuminaError: if the file is missing, not JSON, or holds anything but an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LuminaError(f"{path} does not exist; the diffusers layout requires it") from error
    except (OSError, ValueError) as error:
        raise LuminaError(f"{path} is not readable JSON: {summarize_error(error)}") from error
    if not isinstance(content, dict):
        raise LuminaError(f"{path} does not contain a JSON object")
    return content


def write_json(content: dict, path: Path) -> None:
    """Write a JSON object, whole or not at all."""
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_indexes(folder: Path) -> list[Path]:
    """Return the indexes of sharded weights in a folder, sorted by name."""
    return sorted(folder.glob("*.safetensors.index.json"))


def read_weight_map(index: Path) -> dict[str, str]:
    """Return {tensor name: file name} of a `*.safetensors.index.json`; its files are in the same folder.

    Raises:
        LuminaError: if the index is missing, malformed, or points to a file outside its folder.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise LuminaError(f"{index} does not contain a weight_map from tensor names to files")
    if any(Path(file).name != file for file in files.values()):
        raise LuminaError(f"{index} points outside its own folder")
    return files


def summarize_error(error: Exception) -> str:
    """Return the first line of an error, at most 160 characters of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]

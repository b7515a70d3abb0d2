"""JSON files of model folders: configs, and the indexes of sharded weights. Does not import torch."""

import json
import re
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.limits import read_json_file
from lumina_cli.core.weights.content import check_content

UNSAFE = re.compile(r"(?:GLOBAL|global|[Cc]lass) ([\w.]+)")
DECLARED_DTYPE = re.compile(r'("(?:torch_)?dtype"\s*:\s*)"(?:bfloat16|float16)"')
STORED_DTYPE = re.compile(rb'"dtype":"(\w+)"')
MAX_HEADER = 1 << 16  # bytes of a safetensors header that contain the first tensor


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        LuminaError: if the file is missing, not JSON, or holds anything but an object.
    """
    try:
        content = read_json_file(path)
    except FileNotFoundError as error:
        raise LuminaError(f"{path} does not exist; the diffusers layout requires it") from error
    except (OSError, ValueError, RecursionError) as error:
        check_content(path)
        raise LuminaError(f"{path} is not readable JSON: {summarize_error(error)}") from error
    if not isinstance(content, dict):
        raise LuminaError(f"{path} does not contain a JSON object")
    return content


def write_json(content: dict, path: Path) -> None:
    """Write a JSON object, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def declare_float32(folder: Path) -> None:
    """Make transformers load a text encoder in float32 by default, as diffusers loads the transformer.

    If config.json names the data type of the stored weights, `Lumina2Pipeline.from_pretrained` without a
    dtype mixes both and fails. Nothing else in the file changes.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    changed = DECLARED_DTYPE.sub(r'\1"float32"', text)
    if changed != text:
        write_text(path, changed)


def stored_config(folder: Path) -> bytes:
    """Return a config.json with the data type of the stored weights, as it is before `declare_float32`."""
    text, stored = (folder / "config.json").read_bytes(), None
    for file in sorted(folder.glob("*.safetensors"))[:1]:
        with file.open("rb") as opened:
            stored = STORED_DTYPE.search(opened.read(MAX_HEADER))
    if stored is None or stored[1] == b"F32":
        return text
    name = {b"BF16": b"bfloat16", b"F16": b"float16"}.get(stored[1], b"float32")
    return re.sub(rb'("(?:torch_)?dtype": *)"float32"', rb'\1"' + name + b'"', text)


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
    """Return the first line of an error, at most 160 characters of it.

    The advice of torch to load a file without weights_only, which would run its code, is not repeated.
    """
    if "weights_only" in str(error) or "Weights only load failed" in str(error):
        found = UNSAFE.search(str(error))
        what = f"{found[1]}, which is not a tensor" if found else "something other than tensors"
        return f"it is damaged, or contains {what}; such objects are not loaded, as they can run code"
    if isinstance(error, KeyError | IndexError | EOFError | MemoryError):  # of a parser, without a message
        return f"it is damaged ({type(error).__name__})"
    if "PytorchStreamReader" in str(error) or "enforce fail at" in str(error):  # lines of torch's C++
        return "it is damaged"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]

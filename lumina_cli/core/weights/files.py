"""Weight files: safe reading (no code runs), atomic writing, and exact reports of a misfit with a model."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.weights.content import PICKLED, SAFETENSORS, check_content
from lumina_cli.core.weights.json_files import find_indexes, read_weight_map, summarize_error

WRAPPED = "state_dict"  # the only key of a checkpoint of Lightning, above its tensors
MAX_VIEWS = 8  # times the size of a pickled file that its tensors, which may share memory, have in total
PREFERRED = ("diffusion_pytorch_model.safetensors", "model.safetensors", "consolidated.00-of-01.pth")


def read_weights(path: str | Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, a pickled file (.pth..., weights_only), or a folder of either.

        path     a folder may hold sharded weights: a `*.safetensors.index.json` next to its files
        apart    name suffixes: tensors with these names are loaded in a separate pass
        returns  {name: tensor} on the CPU

    Tensors of one pass share the memory map of their file, which stays in memory as long as one of them does.
    A caller that replaces some of them by new ones (e.g. fused projections) passes their suffixes as `apart`.

    Raises:
        LuminaError: if the file is missing, broken, of another type, or holds anything but tensors by name.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, apart)
    if not path.exists():
        raise LuminaError(f"{path} does not exist; expected a weight file or a folder with one")
    check_suffix(path)
    if path.suffix in SAFETENSORS:
        return read_safetensors(path, apart)
    check_content(path)
    return read_pickled(path)


def check_suffix(path: Path) -> None:
    """Check that the name of a file is that of weights.

    Raises:
        LuminaError: if it is not.
    """
    if path.suffix == ".gguf":
        raise LuminaError(f"{path} is a GGUF file, which lumina does not read; use a .safetensors file")
    if path.suffix not in (*SAFETENSORS, *PICKLED):
        raise LuminaError(
            f"{path} has an unknown suffix; weight files end in .safetensors, {', '.join(PICKLED)}"
        )


def read_folder(folder: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read the weights in a folder: the files of its index, or its only weight file.

    Raises:
        LuminaError: if it is ambiguous which file to read, or there is none.
    """
    indexes = find_indexes(folder)
    if len(indexes) == 1:
        return read_shards(indexes[0], apart)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *PICKLED))
    files = [folder / name for name in PREFERRED if folder / name in files] or files
    if not files or len(indexes) > 1:
        raise LuminaError(
            f"{folder} holds {len(indexes)} indexes and {len(files)} weight files; exactly one is needed"
        )
    if len(files) > 1 and files[0].name not in PREFERRED:
        raise LuminaError(f"{folder} holds {len(files)} weight files and no index; name one of them")
    return read_weights(files[0], apart)


def read_shards(index: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read all tensors of the files that an index of sharded weights names.

    Raises:
        LuminaError: if a file or a tensor that the index names is missing.
    """
    places = read_weight_map(index)
    tensors = {}
    for part in sorted(set(places.values())):
        if not (index.parent / part).exists():
            raise LuminaError(f"{index.parent}: {part} is listed in the index but missing; download it again")
        tensors |= read_safetensors(index.parent / part, apart)
    if lost := places.keys() - tensors.keys():
        raise LuminaError(f"{index.parent}: {format_names(sorted(lost))} listed in the index but missing")
    return tensors


def read_safetensors(path: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read a .safetensors file; `apart` is that of `read_weights`."""
    check_content(path)
    try:
        if not apart:
            return load_file(path)
        tensors = {}
        for wanted in (False, True):
            with safe_open(path, "pt") as opened:
                names = [name for name in opened.keys() if name.endswith(apart) is wanted]  # noqa: SIM118
                tensors |= {name: opened.get_tensor(name) for name in names}
        return tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise LuminaError(f"{path} is not a readable safetensors file: {summarize_error(error)}") from error


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a pickled file with the restricted unpickler, which runs no code."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file makes the restricted unpickler fail in any way
        raise LuminaError(f"{path} cannot be loaded: {summarize_error(error)}") from error
    if isinstance(tensors, dict) and len(tensors) == 1 and isinstance(inner := tensors.get(WRAPPED), dict):
        tensors = inner
    if not isinstance(tensors, dict):
        raise LuminaError(f"{path} must contain only a dict of tensors by name, not a {_name_type(tensors)}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise LuminaError(
                f"{path} must contain only a flat dict of tensors by name; it has a {_name_type(tensor)} "
                f"under the {'name' if isinstance(name, str) else _name_type(name)} {str(name)[:80]!r}"
            )
    size, total = path.stat().st_size, sum(each.numel() * each.element_size() for each in tensors.values())
    if total > MAX_VIEWS * size:
        raise LuminaError(
            f"{path} has {size:,} bytes, but its tensors would have {total:,}; "
            "they repeat the same values, so save copies of them (tensor.clone())"
        )
    return dict(tensors)


def _name_type(value: object) -> str:
    return type(value).__name__


def write_weights(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Write a .safetensors or pickled file, by suffix, whole or not at all.

    Raises:
        LuminaError: if writing fails.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with disk_errors(path), atomic_write(path) as aside:
        if path.suffix in PICKLED:
            # into an open file, because torch's own writer does not report why writing failed
            with aside.open("wb") as file:
                torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)
        else:
            save_file(tensors, aside, metadata={"format": "pt"})


def check_state_dict(model: nn.Module, state_dict: dict[str, Tensor], name: str) -> None:
    """Check that a state dict fits a model; `name` stands for the weights in the message.

    Raises:
        LuminaError: if tensors are missing, unexpected or misshaped; the message names them.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    misshaped = [(key, found[key], shape) for key, shape in wanted.items() if found.get(key, shape) != shape]
    raise_misfit(
        name,
        [key for key in wanted if key not in found],
        [key for key in found if key not in wanted],
        misshaped,
    )


def raise_misfit(
    name: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshaped: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raise an error if any of the lists has an entry; `misshaped` holds (tensor, shape found, right shape).

    Raises:
        LuminaError: if a tensor is missing, unexpected or misshaped.
    """
    shapes = [f"{key} is {tuple(found)}, should be {tuple(right)}" for key, found, right in misshaped]
    groups = {"missing": list(missing), "unexpected": list(unexpected), "misshaped": shapes}
    faults = [f"{kind} {format_names(names)}" for kind, names in groups.items() if names]
    if faults:
        raise LuminaError(f"{name} does not fit this model: {'; '.join(faults)}")


def format_names(names: list[str]) -> str:
    """Return the number of names and the first three: "5 tensors (a, b, c, ...)"."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"

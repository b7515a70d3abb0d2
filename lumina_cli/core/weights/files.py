"""Weight files: read without running code from them, written aside then renamed, checked with exact words."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.weights.json_files import find_indexes, read_weight_map, summarize_error

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
PREFERRED = ("diffusion_pytorch_model.safetensors", "model.safetensors", "consolidated.00-of-01.pth")


def read_weights(path: str | Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, a .pth (opened with weights_only), or a folder of either.

    A folder may be sharded: a `*.safetensors.index.json` beside its parts. Tensors share the memory of their
    file as long as one of them lives; those whose name ends with a word of `apart` are read apart from the
    others, for who joins them to new ones. LuminaError, one line, where the file is missing, broken, of
    another kind, or holds anything but tensors by name.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, apart)
    if not path.exists():
        raise LuminaError(f"{path} does not exist; a file of weights or a folder with one is needed")
    if path.suffix == ".safetensors":
        return read_safetensors(path, apart)
    if path.suffix in PICKLED:
        return read_pickled(path)
    raise LuminaError(f"{path} has an unknown ending; weights end in .safetensors, {', '.join(PICKLED)}")


def read_folder(folder: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights in a folder: the parts that an index lists, or the one file."""
    indexes = find_indexes(folder)
    if len(indexes) == 1:
        return read_shards(indexes[0], apart)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *PICKLED))
    files = [folder / name for name in PREFERRED if folder / name in files] or files
    if not files or len(indexes) > 1:
        raise LuminaError(
            f"{folder} holds {len(indexes)} indexes and {len(files)} weight files; one is needed"
        )
    if len(files) > 1 and files[0].name not in PREFERRED:
        raise LuminaError(f"{folder} holds {len(files)} weight files and no index; name one of them")
    return read_weights(files[0], apart)


def read_shards(index: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All tensors of the parts that a sharded index names."""
    places = read_weight_map(index)
    tensors = {}
    for part in sorted(set(places.values())):
        if not (index.parent / part).exists():
            raise LuminaError(f"{index.parent} lacks {part}, which its index names; fetch it again")
        tensors |= read_safetensors(index.parent / part, apart)
    if lost := places.keys() - tensors.keys():
        raise LuminaError(f"{index.parent} lacks {format_names(sorted(lost))}, which its index names")
    return tensors


def read_safetensors(path: Path, apart: tuple[str, ...] = ()) -> dict[str, Tensor]:
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
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file makes the restricted unpickler fail in any way
        raise LuminaError(
            f"{path} is not a readable file of weights alone: {summarize_error(error)}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise LuminaError(f"{path} holds more than weights; a flat dict of tensors by name is needed")
    return dict(tensors)


def write_weights(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Write a .safetensors or .pth file, complete or not at all; LuminaError where the disk refuses."""
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with disk_errors(path), atomic_write(path) as aside:
        if path.suffix in PICKLED:
            # into an open file, because torch's own writer does not say why a disk refuses
            with aside.open("wb") as file:
                torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)
        else:
            save_file(tensors, aside, metadata={"format": "pt"})


def check_state_dict(model: nn.Module, state_dict: dict[str, Tensor], name: str) -> None:
    """Raise LuminaError that names the missing, unexpected and misshaped tensors of `name`, if any."""
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
    """Raise LuminaError where any of the lists has an entry; `misshaped` says tensor, found, right shape."""
    shapes = [f"{key} is {tuple(found)}, should be {tuple(right)}" for key, found, right in misshaped]
    groups = {"missing": list(missing), "unexpected": list(unexpected), "misshaped": shapes}
    faults = [f"{kind} {format_names(names)}" for kind, names in groups.items() if names]
    if faults:
        raise LuminaError(f"{name} does not fit this model: {'; '.join(faults)}")


def format_names(names: list[str]) -> str:
    """ "5 tensors (a, b, c, ...)": how many, and the first three."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"

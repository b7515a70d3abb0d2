"""Weights left in their files: what there is, and one tensor at a time, in memory only while it is used."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.weights.files import PREFERRED
from lumina_cli.core.weights.json_files import find_indexes, read_weight_map, summarize_error

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1}


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is, its shape, and how many bytes a number takes."""

    file: Path
    shape: tuple[int, ...]
    width: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


class LazyWeights:
    """The tensors in the .safetensors files of a folder, by name.

    Only headers are read at first. LuminaError, one line, where the folder has no such file, more than one
    without an index, or a broken one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.locations: dict[str, TensorLocation] = {}
        for file in self._files():
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - it is no dict
                        part = opened.get_slice(name)
                        width = WIDTHS.get(part.get_dtype(), 8)
                        self.locations[name] = TensorLocation(file, tuple(part.get_shape()), width)
            except (SafetensorError, OSError, ValueError) as error:
                raise LuminaError(
                    f"{file} is not a readable safetensors file: {summarize_error(error)}"
                ) from error

    def _files(self) -> list[Path]:
        if indexes := find_indexes(self.folder):
            return [self.folder / name for name in sorted(set(read_weight_map(indexes[0]).values()))]
        files = sorted(self.folder.glob("*.safetensors"))
        files = [file for file in files if file.name in PREFERRED] or files
        if len(files) != 1:
            raise LuminaError(
                f"{self.folder} holds {len(files)} .safetensors files; one, or an index, is needed"
            )
        return files

    def read(self, name: str) -> Tensor:
        """The tensor `name` on the CPU, its pages shared with the file until it is dropped."""
        place = self.locations.get(name)
        if place is None:
            raise LuminaError(f"{self.folder} has no {name}")
        with safe_open(place.file, "pt") as opened:
            return opened.get_tensor(name)

    def meta_tensors(self) -> dict[str, Tensor]:
        """All tensors with their shapes and without memory."""
        return {name: torch.empty(place.shape, device="meta") for name, place in self.locations.items()}

    def count_parameters(self, *prefixes: str) -> int:
        """How many numbers the tensors hold whose names start with one of `prefixes`; without any, all."""
        places = self.locations.items()
        return sum(place.numel for name, place in places if not prefixes or name.startswith(prefixes))

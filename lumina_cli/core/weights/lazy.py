"""Weights left in their files: what there is, and one tensor at a time, in memory only while it is used."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.weights.files import PREFERRED, one_line, read_json

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1}


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is, its shape, and how many bytes a number takes."""

    file: Path
    shape: tuple[int, ...]
    width: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


class LazyWeights:
    """The tensors in the .safetensors files of a folder, by name.

    Only headers are read at first. LuminaError, one line, where the folder has no such file, more than one
    without an index, or a broken one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.places: dict[str, TensorLocation] = {}
        for file in self._files():
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - it is no dict
                        part = opened.get_slice(name)
                        width = WIDTHS.get(part.get_dtype(), 8)
                        self.places[name] = TensorLocation(file, tuple(part.get_shape()), width)
            except (SafetensorError, OSError, ValueError) as error:
                raise LuminaError(f"{file} is not a readable safetensors file: {one_line(error)}") from error

    def _files(self) -> list[Path]:
        indexes = sorted(self.folder.glob("*.safetensors.index.json"))
        if indexes:
            parts = read_json(indexes[0]).get("weight_map")
            if not isinstance(parts, dict) or any(Path(part).name != part for part in parts.values()):
                raise LuminaError(f"{indexes[0]} has no weight_map to files of its own folder")
            return [self.folder / part for part in sorted(set(parts.values()))]
        files = sorted(self.folder.glob("*.safetensors"))
        files = [file for file in files if file.name in PREFERRED] or files
        if len(files) != 1:
            raise LuminaError(
                f"{self.folder} holds {len(files)} .safetensors files; one, or an index, is needed"
            )
        return files

    def read(self, name: str) -> Tensor:
        """The tensor `name` on the CPU, its pages shared with the file until it is dropped."""
        place = self.places.get(name)
        if place is None:
            raise LuminaError(f"{self.folder} has no {name}")
        with safe_open(place.file, "pt") as opened:
            return opened.get_tensor(name)

    def outlines(self) -> dict[str, Tensor]:
        """All tensors with their shapes and without memory."""
        return {name: torch.empty(place.shape, device="meta") for name, place in self.places.items()}

    def numbers(self, *prefixes: str) -> int:
        """How many numbers the tensors hold whose names start with one of `prefixes`; without any, all."""
        places = self.places.items()
        return sum(place.numbers for name, place in places if not prefixes or name.startswith(prefixes))

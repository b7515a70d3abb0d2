"""Lazy weights: names and shapes from file headers, and single tensors loaded on demand."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.weights.content import check_content
from lumina_cli.core.weights.files import PREFERRED
from lumina_cli.core.weights.json_files import find_indexes, read_weight_map, summarize_error

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1}


@dataclass(frozen=True)
class TensorLocation:
    """The file and shape of a tensor, and its bytes per element (`width`)."""

    file: Path
    shape: tuple[int, ...]
    width: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)


class LazyWeights:
    """The tensors in the .safetensors files of a folder, by name; only headers are read until `read`.

    Raises:
        LuminaError: if the folder does not contain a .safetensors file, contains several without an index, or
            a broken one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.locations: dict[str, TensorLocation] = {}
        for file in self._files():
            check_content(file)
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - not a dict
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
                f"{self.folder} holds {len(files)} .safetensors files; expected one, or an index"
            )
        return files

    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU; it is memory-mapped, so its pages are freed when it is dropped.

        Raises:
            LuminaError: if no tensor has this name.
        """
        place = self.locations.get(name)
        if place is None:
            raise LuminaError(f"{self.folder} does not contain {name}")
        with safe_open(place.file, "pt") as opened:
            return opened.get_tensor(name)

    def meta_tensors(self) -> dict[str, Tensor]:
        """Return all tensors on the meta device: shapes without memory."""
        return {name: torch.empty(place.shape, device="meta") for name, place in self.locations.items()}

    def count_parameters(self, *prefixes: str) -> int:
        """Return the number of parameters in tensors whose names start with a prefix; without any, of all."""
        places = self.locations.items()
        return sum(place.numel for name, place in places if not prefixes or name.startswith(prefixes))

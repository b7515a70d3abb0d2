"""The layout of a packed batch: where each batch entry is in the token matrix, and its rotations.

B batch entries, T tokens of all entries, M text tokens and N image tokens of an entry, d head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.sequence import image_rotation, text_rotation


@dataclass(frozen=True)
class PackedLayout:
    """Positions of the batch entries in the token matrix (T, D), and the rotations of their tokens.

    texts       B integers       text tokens of each entry, followed by its image tokens
    ends        B + 1 integers   entry i is tokens ends[i] to ends[i + 1]
    rotations   (T, 1, d/2)      cosine + i sine of every angle, complex64
    """

    texts: tuple[int, ...]
    ends: tuple[int, ...]
    rotations: Tensor

    @property
    def entries(self) -> list[slice]:
        """The tokens of each entry."""
        return [slice(*ends) for ends in pairwise(self.ends)]

    @property
    def images(self) -> list[slice]:
        """The image tokens of each entry."""
        return [
            slice(entry.start + text, entry.stop)
            for entry, text in zip(self.entries, self.texts, strict=True)
        ]

    def equal_shapes(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield runs of entries of one shape: (first token, entries, tokens and text tokens per entry)."""
        shapes = [
            (entry.stop - entry.start, text) for entry, text in zip(self.entries, self.texts, strict=True)
        ]
        start = 0
        for (length, text), group in groupby(shapes):
            entries = len(list(group))
            yield start, entries, length, text
            start += entries * length


@lru_cache(maxsize=64)
def packed_rotations(
    config: NextDiTConfig, length: int, grid: tuple[int, int], device: torch.device
) -> Tensor:
    """Rotations of one entry, (M + N, 1, d/2) complex64.

    length   M, tokens of its caption
    grid     rows and columns of its image's patches
    """
    with torch.inference_mode(False), torch.no_grad():
        parts = text_rotation(config, length, device), image_rotation(config, (length,), (grid,), device)
        return torch.cat([torch.complex(part.cos[0], part.sin[0]) for part in parts])[:, None]


# few entries, because the layout of large images is large; enough for guidance and for skipped entries
@lru_cache(maxsize=8)
def packed_layout(
    config: NextDiTConfig, lengths: tuple[int, ...], grids: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[PackedLayout, PackedLayout]:
    """Return the layouts of text with image tokens, and of the image tokens alone.

    lengths   text tokens of each entry
    grids     rows and columns of the patches of each entry's image
    """
    both = [
        packed_rotations(config, length, grid, device) for length, grid in zip(lengths, grids, strict=True)
    ]
    images = [rotation[length:] for rotation, length in zip(both, lengths, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        joint, image = (
            PackedLayout(texts, tuple(accumulate(map(len, entries), initial=0)), torch.cat(entries))
            for texts, entries in ((lengths, both), ((0,) * len(lengths), images))
        )
    return joint, image

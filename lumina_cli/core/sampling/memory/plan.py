"""Memory plans: which components of a model stay in memory, are offloaded, streamed or tiled."""

import re
from dataclasses import dataclass, replace
from math import ceil

from lumina_cli.core.errors import UsageError

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class MemoryPlan:
    """How a model stays within `budget` bytes.

    offload              only one of text encoder, transformer and autoencoder is in memory at a time
    stream_text          the weight matrices of the text encoder are read from its file in each call
    streamed             names of the transformer's weight matrices that are read from its file in each call
    streamed_fraction    of the transformer's bytes, 0 to 1
    tile                 side in latents of the tiles in which images are decoded; None: whole images
    peak                 estimated peak memory in bytes
    """

    budget: int
    offload: bool = False
    stream_text: bool = False
    streamed: frozenset[str] = frozenset()
    streamed_fraction: float = 0.0
    tile: int | None = None
    peak: int = 0

    def summary(self, factor: int = 8) -> str:
        """Return one line on the effects of the budget; `factor` is the width of a latent in pixels."""
        measures = ["all components stay in memory"]
        if self.offload:
            measures = ["text encoder, transformer and autoencoder one at a time"]
        if self.stream_text:
            measures.append("the text encoder is streamed layer by layer")
        if self.streamed:
            measures.append(
                f"{self.streamed_fraction:.0%} of the transformer is read from its file in each call"
            )
        if self.tile:
            measures.append(
                f"images are decoded in tiles of {self.tile * factor} pixels, which changes them slightly"
            )
        return f"memory {format_bytes(self.budget)}: {'; '.join(measures)}"

    def merged(self, other: "MemoryPlan") -> "MemoryPlan":
        """Return this plan, with everything that `other` keeps out of memory kept out as well.

        Components are then not reloaded for each change between two sizes of images. The tile stays that of
        this plan: an image must not depend on the sizes of other images.
        """
        streamed, fraction = max(
            ((plan.streamed, plan.streamed_fraction) for plan in (self, other)), key=lambda found: found[1]
        )
        return replace(
            self,
            offload=self.offload or other.offload,
            stream_text=self.stream_text or other.stream_text,
            streamed=streamed,
            streamed_fraction=fraction,
        )


def parse_memory(text: str) -> int:
    """Return the bytes of "8G", "8GiB", "800M" or a plain number.

    Raises:
        UsageError: if `text` is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", str(text).strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS.get((found[2] or "").upper(), 1)) if found else 0
    if not size:
        raise UsageError(f"memory {text!r} is not a size; write 8G or 800M")
    return size


def format_bytes(size: int) -> str:
    """Return a size as "2.7G" or "310M", rounded up."""
    unit = "G" if size >= UNITS["G"] else "M"
    return f"{ceil(10 * size / UNITS['G']) / 10:.1f}G" if unit == "G" else f"{ceil(size / UNITS['M'])}M"

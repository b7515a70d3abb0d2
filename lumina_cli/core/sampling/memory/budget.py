"""A budget of memory: what drawing takes, and which parts of a model stay, stream or tile to keep within it.

All sizes are bytes above what the program itself takes. Weights are counted exactly; what is computed beside
them is estimated from above, by the tensors that live together.
"""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS
from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.nextdit.config import NextDiTConfig, config_from_diffusers
from lumina_cli.core.nextdit.convert import empty_model
from lumina_cli.core.sampling.memory.streaming import block_of, streamable
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MMAP_THRESHOLD = -3  # the number of this setting in glibc's malloc.h
SLACK = 24 * 2**20  # what the allocator and the kernels' own buffers add, whatever the size
TILES = (96, 64, 48, 32)  # sides of a tile in latents; the largest that fits is taken


@dataclass(frozen=True)
class MemoryPlan:
    """How a model stays within `budget` bytes.

    in_turn        text encoder, transformer and autoencoder are there one at a time
    text_streamed  the matrices of the text encoder stay in their file
    streamed       names of the transformer's matrices that stay in theirs
    share          of the transformer that these are, 0 to 1
    tile           side of the tiles, in latents, in which pictures are decoded; None: whole
    peak           bytes at the worst moment, as estimated
    """

    budget: int
    in_turn: bool = False
    text_streamed: bool = False
    streamed: frozenset[str] = frozenset()
    share: float = 0.0
    tile: int | None = None
    peak: int = 0

    def words(self, factor: int = 8) -> str:
        """One line for people on what the budget changes; a latent is `factor` pixels wide."""
        parts = ["all parts stay in memory"]
        if self.in_turn:
            parts = ["text encoder, transformer and autoencoder one at a time"]
        if self.text_streamed:
            parts.append("the text encoder read layer by layer")
        if self.streamed:
            parts.append(f"{self.share:.0%} of the transformer read from its file in every call")
        if self.tile:
            parts.append(
                f"pictures decoded in tiles of {self.tile * factor} pixels, which changes them a little"
            )
        return f"memory {format_bytes(self.budget)}: {'; '.join(parts)}"

    def beside(self, other: "MemoryPlan") -> "MemoryPlan":
        """Return this plan with what `other` keeps out of memory kept out as well; tiles stay its own.

        Then parts need not be loaded anew for each of two kinds of batches, and every picture is decoded as
        it is without the other kind.
        """
        streamed, share = max(
            ((plan.streamed, plan.share) for plan in (self, other)), key=lambda found: found[1]
        )
        in_turn, text = self.in_turn or other.in_turn, self.text_streamed or other.text_streamed
        return replace(self, in_turn=in_turn, text_streamed=text, streamed=streamed, share=share)


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a part takes.

    weights   all of them in memory
    work      what computing adds
    window    what reading a matrix, or while streaming a block, adds
    matrices  bytes of those that can stay in the file, by name, the best first
    """

    weights: int
    work: int
    window: int = 0
    matrices: dict[str, int] | None = None

    @property
    def whole(self) -> int:
        """With all weights in memory."""
        return self.weights + max(self.work, self.window)

    def streaming(self, names: frozenset[str]) -> int:
        """With the matrices `names` in the file."""
        kept = self.weights - sum(self.matrices[name] for name in names)
        return kept + self.window + self.work

    def choose(self, budget: int) -> frozenset[str]:
        """The matrices to leave in the file for a budget; all of them where even that is not enough."""
        if self.whole <= budget:
            return frozenset()
        over, names = self.streaming(frozenset()) - budget, []
        for name, size in self.matrices.items():
            if over <= 0:
                break
            names.append(name)
            over -= size
        return frozenset(names)


def plan_memory(
    folder: str | Path,
    budget: int,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    loras: bool = False,
    cached: bool = False,
) -> MemoryPlan:
    """Decide how the model in `folder` draws `batch` guided pictures of `size` (width, height) at once.

    With `loras` some are merged while weights are read, which takes room; so does what a plan with a cache,
    `cached`, remembers of each picture. Tiles come last, because they change pictures. Raises UsageError,
    with the least that would do, where nothing fits `budget` bytes.
    """
    folder, device = Path(folder), torch.device(device)
    config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
    fields = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(fields["block_out_channels"]) - 1)
    latents = tuple(side // factor for side in size) if size else (config.sample_size,) * 2
    text = text_needs(folder / "text_encoder", dtype)
    network = transformer_needs(folder / "transformer", config, latents, batch, dtype, device, cached)
    if loras:  # a matrix, its sum and what is added to it, in float32
        network = replace(network, window=network.window + 4 * 4 * config.dim * config.hidden_dim)
    vaes = vae_needs(folder / "vae", fields, latents, batch)
    at_once = text.weights + network.weights + vaes[None].weights
    peak = at_once + max(max(part.work, part.window) for part in (text, network, vaes[None]))
    if peak <= budget:
        return MemoryPlan(budget, peak=peak)
    text_streamed = text.whole > budget
    streamed = network.choose(budget)
    tile = next((tile for tile, part in vaes.items() if part.whole <= budget), list(vaes)[-1])
    stages = {
        "the text encoder": text.streaming(frozenset(text.matrices)) if text_streamed else text.whole,
        "the transformer": network.streaming(streamed) if streamed else network.whole,
        "the autoencoder": vaes[tile].whole,
    }
    worst = max(stages, key=stages.get)
    if stages[worst] > budget:
        raise UsageError(
            f"memory {format_bytes(budget)} is too little: with all that helps {worst} takes "
            f"{format_bytes(stages[worst])} for {batch} of {latents[0] * factor}x{latents[1] * factor} "
            f"at once; "
            f"give it as much, or draw {'fewer at once or ' if batch > 1 else ''}a smaller size"
        )
    share = sum(network.matrices[name] for name in streamed) / network.weights
    return MemoryPlan(budget, True, text_streamed, streamed, share, tile, stages[worst])


def text_needs(folder: Path, dtype: torch.dtype) -> MemoryNeeds:
    """A Gemma-2 without its table of tokens and its last layer, reading one prompt."""
    fields, stored, number = read_json(folder / "config.json"), LazyWeights(folder), dtype.itemsize
    layers = range(fields["num_hidden_layers"] - 1)
    start = "model." if any(name.startswith("model.") for name in stored.locations) else ""
    sizes = {f"{n}": number * stored.count_parameters(f"{start}layers.{n}.") for n in layers}
    hidden, inner, heads = (
        fields[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    work = MAX_TOKENS * number * (3 * inner + 8 * hidden) + 12 * heads * MAX_TOKENS**2 + SLACK
    matrix = hidden * inner
    return MemoryNeeds(
        sum(sizes.values()), work, max(sizes.values()) + reading_bytes(stored, matrix, number), sizes
    )


def transformer_needs(
    folder: Path,
    config: NextDiTConfig,
    latents: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    cached: bool = False,
) -> MemoryNeeds:
    """A network that draws `batch` pictures of `latents` (width, height), with and without captions."""
    stored, number = LazyWeights(folder), dtype.itemsize
    matrices = {name: number * count for name, count in streamable(empty_model(config)).items()}
    # what runs once a picture costs least when it is read again
    matrices = dict(sorted(matrices.items(), key=lambda item: not item[0].startswith("context_refiner")))
    blocks: dict[str, int] = {}
    for name, size in matrices.items():
        blocks[block_of(name)] = blocks.get(block_of(name), 0) + size
    tokens = 2 * batch * (latents[0] * latents[1] // config.patch_size**2 + config.max_text_tokens)
    keys = config.num_kv_heads * config.head_dim
    residual = 3 * 4 * config.dim  # the stream, a copy of it and the pictures cut out of it, in float32
    # of each branch a signal, a residual, and a newer one of either while it takes the older one's place
    residual += 3 * 4 * config.dim if cached else 0
    scratch = number * (2 * (2 * config.dim + 2 * keys) + config.dim) + 8 * config.head_dim
    if device.type != "cpu":
        scratch += number * 3 * config.hidden_dim  # on a CPU the feed-forward runs in spans
    window = max(blocks.values()) + reading_bytes(stored, config.dim * config.hidden_dim, number)
    weights = number * stored.count_parameters()
    return MemoryNeeds(weights, tokens * (residual + scratch) + 2 * SLACK, window, matrices)


def reading_bytes(stored: LazyWeights, matrix: int, number: int) -> int:
    """What a matrix of so many numbers takes while it is read: as it is stored, and as it is used."""
    return matrix * (max(place.width for place in stored.locations.values()) + number)


def vae_needs(
    folder: Path, fields: dict, latents: tuple[int, int], batch: int
) -> dict[int | None, MemoryNeeds]:
    """An AutoencoderKL that decodes one picture after another: whole, and in tiles of TILES.

    It is counted in float32; in bfloat16 it takes less.
    """
    weights, factor = 4 * LazyWeights(folder).count_parameters(), 2 ** (len(fields["block_out_channels"]) - 1)
    channels = fields["block_out_channels"][:2][-1]
    pictures = 4 * 3 * 2 * batch * latents[0] * latents[1] * factor**2
    needs = {}
    for tile in (None, *(side for side in TILES if side < max(latents))):
        pixels = factor**2 * min(latents[0], tile or latents[0]) * min(latents[1], tile or latents[1])
        needs[tile] = MemoryNeeds(weights, int(4 * FULL * channels * pixels) + pictures + SLACK, weights)
    return needs


FULL = 4.0  # tensors of the last but one width that a decoder has at full size


def parse_memory(text: str) -> int:
    """ "8G", "8GiB", "800M" or a number of bytes -> bytes; UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", str(text).strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS.get((found[2] or "").upper(), 1)) if found else 0
    if not size:
        raise UsageError(f"memory {text!r} is no size; write 8G or 800M")
    return size


def format_bytes(size: int) -> str:
    """ "2.7G" or "310M", rounded up."""
    unit = "G" if size >= UNITS["G"] else "M"
    return f"{ceil(10 * size / UNITS['G']) / 10:.1f}G" if unit == "G" else f"{ceil(size / UNITS['M'])}M"


def trim_allocator() -> None:
    """Make the allocator hand blocks from 1 MiB back as soon as they are free, for the rest of the process.

    By itself it keeps blocks of up to 32 MiB, which adds half of a decoder's work to its peak.
    """
    _allocator("mallopt", MMAP_THRESHOLD, 2**20)


def _allocator(call: str, *numbers: int) -> None:
    """Call glibc's allocator; another one, which has no such call, stays as it is."""
    try:
        getattr(ctypes.CDLL(None), call)(*numbers)
    except (AttributeError, OSError, TypeError):
        return


def release_memory(device: torch.device) -> None:
    """Hand memory that nothing uses any more back to the system or the device's driver."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _allocator("malloc_trim", 0)


@dataclass
class Peak:
    """Bytes at the worst moment since `watch_peak` began, above those at its beginning."""

    bytes: int = 0


@contextmanager
def watch_peak(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the most memory that a block takes: of this process, or of a CUDA device.

    The number is there when the block ends. MissingPart where the system does not count (Linux does).
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError as error:
        raise MissingDependency(f"the peak of memory cannot be measured here: {error}") from error
    yield peak
    peak.bytes = _status("VmHWM") - before


def _status(field: str) -> int:
    """A size of this process as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

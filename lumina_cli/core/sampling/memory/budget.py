"""Memory budget: estimates what generating takes, and chooses a plan that fits.

All sizes are bytes in addition to the memory of the program itself. Weights are counted exactly; activations
are estimated from above, by the tensors that are alive at the same time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS
from lumina_cli.core.errors import UsageError
from lumina_cli.core.nextdit.config import NextDiTConfig, config_from_diffusers
from lumina_cli.core.nextdit.convert import empty_model
from lumina_cli.core.sampling.memory.plan import MemoryPlan, format_bytes
from lumina_cli.core.sampling.memory.streaming import block_of, streamable
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights

SLACK = 24 * 2**20  # added by the allocator and by buffers of kernels, for any size
TILES = (96, 64, 48, 32)  # sides of a tile in latents; the largest that fits is used
FULL_SIZE_TENSORS = 4.0  # tensors of the second width that a decoder holds at full resolution


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a component takes.

    weights       all of them in memory
    activations   at their peak
    window        for reading a matrix or, while streaming, the matrices of a block
    matrices      name -> bytes of the matrices that can be streamed, the cheapest to stream first
    """

    weights: int
    activations: int
    window: int = 0
    matrices: Mapping[str, int] | None = None

    @property
    def whole(self) -> int:
        """Peak with all weights in memory; reading is finished before activations exist."""
        return self.weights + max(self.activations, self.window)

    def streaming(self, names: frozenset[str]) -> int:
        """Peak with the matrices `names` streamed; the window then exists next to the activations."""
        kept = self.weights - sum(self.matrices[name] for name in names)
        return kept + self.window + self.activations

    def choose(self, budget: int) -> frozenset[str]:
        """The matrices to stream for a budget; all of them if even that is not enough."""
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
    """Plan how the model in `folder` generates a batch within a budget.

        budget   bytes
        size     (width, height) in pixels; None: the model's own
        batch    images that are generated together, with guidance
        loras    whether LoRAs are merged while weights are read, which takes memory
        cached   whether a layer cache keeps tensors of each image

    The measures, in this order: all components in memory; one at a time; streaming, which costs time; tiled
    decoding, which changes images.

    Raises:
        UsageError: if nothing fits; the message contains the smallest budget that does.
    """
    folder, device = Path(folder), torch.device(device)
    config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
    fields = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(fields["block_out_channels"]) - 1)
    latents = tuple(side // factor for side in size) if size else (config.sample_size,) * 2
    text = text_needs(folder / "text_encoder", dtype)
    network = transformer_needs(folder / "transformer", config, latents, batch, dtype, device, cached)
    if loras:  # a matrix, its merged copy and the update, in float32
        network = replace(network, window=network.window + 4 * 4 * config.dim * config.hidden_dim)
    vaes = vae_needs(folder / "vae", fields, latents, batch)
    at_once = text.weights + network.weights + vaes[None].weights
    peak = at_once + max(max(part.activations, part.window) for part in (text, network, vaes[None]))
    if peak <= budget:
        return MemoryPlan(budget, peak=peak)
    stream_text = text.whole > budget
    streamed = network.choose(budget)
    tile = next((tile for tile, needs in vaes.items() if needs.whole <= budget), list(vaes)[-1])
    peaks = {
        "the text encoder": text.streaming(frozenset(text.matrices)) if stream_text else text.whole,
        "the transformer": network.streaming(streamed) if streamed else network.whole,
        "the autoencoder": vaes[tile].whole,
    }
    pixels = latents[0] * factor, latents[1] * factor
    worst = _check_fits(peaks, budget, pixels, batch)
    fraction = sum(network.matrices[name] for name in streamed) / network.weights
    return MemoryPlan(budget, True, stream_text, streamed, fraction, tile, worst)


def _check_fits(peaks: dict[str, int], budget: int, size: tuple[int, int], batch: int) -> int:
    """Return the highest of the peaks of the components.

    Raises:
        UsageError: if it exceeds the budget.
    """
    worst = max(peaks, key=peaks.get)
    if peaks[worst] > budget:
        needed = format_bytes(peaks[worst])
        raise UsageError(
            f"--memory {format_bytes(budget)} is too small: even with offloading, streaming and tiling, "
            f"{worst} needs {needed} for a batch of {batch} at {size[0]}x{size[1]}; "
            f"raise --memory to {needed} or reduce {'--batch or ' if batch > 1 else ''}--size"
        )
    return peaks[worst]


def text_needs(folder: Path, dtype: torch.dtype) -> MemoryNeeds:
    """Return the needs of a Gemma-2 that encodes one prompt, without its last layer.

    Its token table stays in the file, see `StreamedEmbedding`. The window is the largest layer, because a
    whole layer is streamed at a time.
    """
    fields, stored, width = read_json(folder / "config.json"), LazyWeights(folder), dtype.itemsize
    layers = range(fields["num_hidden_layers"] - 1)
    start = "model." if any(name.startswith("model.") for name in stored.locations) else ""
    sizes = {f"{n}": width * stored.count_parameters(f"{start}layers.{n}.") for n in layers}
    hidden, inner, heads = (
        fields[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    # 3 tensors of the MLP and 8 of the residual width; attention scores of all heads in three copies
    activations = MAX_TOKENS * width * (3 * inner + 8 * hidden) + 12 * heads * MAX_TOKENS**2 + SLACK
    window = max(sizes.values()) + reading_bytes(stored, hidden * inner, width)
    return MemoryNeeds(sum(sizes.values()), activations, window, sizes)


def transformer_needs(
    folder: Path,
    config: NextDiTConfig,
    latents: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    cached: bool = False,
) -> MemoryNeeds:
    """Return the needs of a network for `batch` images of `latents` (width, height) with guidance."""
    stored, width = LazyWeights(folder), dtype.itemsize
    matrices = {name: width * count for name, count in streamable(empty_model(config)).items()}
    # the context refiner runs once per batch, all other blocks in each call: streaming it costs least
    matrices = dict(sorted(matrices.items(), key=lambda item: not item[0].startswith("context_refiner")))
    blocks: dict[str, int] = {}
    for name, size in matrices.items():
        blocks[block_of(name)] = blocks.get(block_of(name), 0) + size
    tokens = 2 * batch * (latents[0] * latents[1] // config.patch_size**2 + config.max_text_tokens)
    keys = config.num_kv_heads * config.head_dim
    # bytes per token, float32: the residual stream, a copy of it and the image tokens sliced out of it
    residual = 3 * 4 * config.dim
    # a cache keeps a reference and a residual of each branch, and one is replaced while both copies exist
    residual += 3 * 4 * config.dim if cached else 0
    scratch = width * (2 * (2 * config.dim + 2 * keys) + config.dim) + 8 * config.head_dim
    if device.type != "cpu":
        scratch += width * 3 * config.hidden_dim  # on a CPU the feed-forward runs in chunks of tokens
    window = max(blocks.values()) + reading_bytes(stored, config.dim * config.hidden_dim, width)
    weights = width * stored.count_parameters()
    return MemoryNeeds(weights, tokens * (residual + scratch) + 2 * SLACK, window, matrices)


def reading_bytes(stored: LazyWeights, elements: int, width: int) -> int:
    """Return the bytes of a matrix while it is read: as stored, and with `width` bytes per element."""
    return elements * (max(place.width for place in stored.locations.values()) + width)


def vae_needs(
    folder: Path, fields: dict, latents: tuple[int, int], batch: int
) -> dict[int | None, MemoryNeeds]:
    """Return the needs of an AutoencoderKL by tile: None for whole images, then TILES.

    Images are decoded one after another. The estimate is for float32; bfloat16 takes less.
    """
    weights, factor = 4 * LazyWeights(folder).count_parameters(), 2 ** (len(fields["block_out_channels"]) - 1)
    channels = fields["block_out_channels"][:2][-1]
    images = 4 * 3 * 2 * batch * latents[0] * latents[1] * factor**2  # float32 RGB, and their concatenation
    needs = {}
    for tile in (None, *(side for side in TILES if side < max(latents))):
        pixels = factor**2 * min(latents[0], tile or latents[0]) * min(latents[1], tile or latents[1])
        decoder = int(4 * FULL_SIZE_TENSORS * channels * pixels)
        needs[tile] = MemoryNeeds(weights, decoder + images + SLACK, weights)
    return needs

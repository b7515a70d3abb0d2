"""Lower bound for the time of a network call: its matmuls alone.

D width, d head width, T tokens.
"""

import math
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lumina_cli.core.bench.networks import NetworkInputs
from lumina_cli.core.nextdit import NextDiTConfig

CHUNKS = (256, 512, 1024)  # about so many rows per matmul; smaller ones may stay in a cache


@torch.inference_mode()
def ceiling_seconds(
    config: NextDiTConfig, call: NetworkInputs, dtype: torch.dtype, repeats: int = 3
) -> tuple[float, float]:
    """Return the seconds that the matmuls of the blocks alone take on this machine, and their TFLOP.

    Each shape counts as often as it occurs in a call, at its fastest time: warm, into allocated memory, as a
    whole or in chunks of rows.
    """
    total, operations = 0.0, 0
    for (many, rows, inner, columns), count in list_matmuls(config, call).items():
        left, right = (
            torch.randn(shape).to(dtype) for shape in ((many, rows, inner), (many, inner, columns))
        )
        runs = _time_matmuls(left, right, torch.empty(many, rows, columns, dtype=dtype))
        for run in runs:
            run()  # untimed: it allocates memory
        total += count * min(seconds(run) for run in runs for _ in range(repeats))
        operations += count * 2 * many * rows * inner * columns
    return total, operations / 1e12


def list_matmuls(config: NextDiTConfig, call: NetworkInputs) -> Counter:
    """Count the matmuls (n, rows, inner) x (n, inner, columns) of a call.

    The image is refined once for all captions, and these share the matmuls of their linear layers; diffusers
    computes everything once per caption. With several captions, texts are encoded before the call.
    """
    D, inner, d = config.dim, config.hidden_dim, config.head_dim
    qkv = D + 2 * config.num_kv_heads * d
    image = call.latents.shape[2] * call.latents.shape[3] // config.patch_size**2
    found: Counter = Counter()
    texts = [text.shape[1] for text in call.texts]
    blocks = {sum(texts) + image * len(texts): config.num_layers, image: config.num_refiner_layers}
    if len(texts) == 1:
        blocks[texts[0]] = blocks.get(texts[0], 0) + config.num_refiner_layers
    for T, count in blocks.items():
        found[1, T, D, qkv] += count
        found[1, T, D, D] += count
        found[1, T, D, inner] += 2 * count
        found[1, T, inner, D] += count
    rows = [*((text + image, config.num_layers) for text in texts), (image, config.num_refiner_layers)]
    encoded = texts if len(texts) == 1 else []  # several captions are encoded before the call
    for T, count in [*rows, *((text, config.num_refiner_layers) for text in encoded)]:
        found[1, T, d, T] += count * config.num_heads
        found[1, T, T, d] += count * config.num_heads
    return found


def _time_matmuls(left: Tensor, right: Tensor, out: Tensor) -> list[Callable[[], object]]:
    """Ways to multiply left (n, rows, inner) by right (n, inner, columns), stored as in a linear layer."""
    if len(left) > 1:
        return [lambda: torch.bmm(left, right, out=out)]
    x, weight, y = left[0], right[0].T.contiguous(), out[0]
    cuts = {math.ceil(len(x) / math.ceil(len(x) / part)) for part in CHUNKS} | {len(x)}
    return [lambda: F.linear(x, weight), *(_in_chunks(x, weight, y, cut) for cut in sorted(cuts))]


def _in_chunks(x: Tensor, weight: Tensor, y: Tensor, rows: int) -> Callable[[], object]:
    """A matmul in chunks of `rows`."""
    chunks = list(zip(x.split(rows), y.split(rows), strict=True))
    return lambda: [torch.mm(one, weight.T, out=two) for one, two in chunks]


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

"""One call of the network against diffusers' own: time, error against float32, share of what products allow.

B rows, M text tokens, C channels, T tokens of a row, D width, d head width, h heads.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumina_cli.core.bench.kernels import PERCENTILES
from lumina_cli.core.device import compute_dtype
from lumina_cli.core.errors import UsageError
from lumina_cli.core.nextdit import EncodedText, NextDiT, NextDiTConfig, load_transformer
from lumina_cli.core.nextdit.config import config_to_diffusers
from lumina_cli.core.nextdit.convert import empty_model, to_diffusers
from lumina_cli.core.nextdit.packed.quantize import check_quantizer, quantize
from lumina_cli.core.nextdit.sequence import padded_layout, patchify, unpatchify
from lumina_cli.core.registry import did_you_mean

PIXELS = 8  # of a side for each number of latents
ERROR_SIZE = 256  # up to which float32 takes seconds for the largest model, not minutes
TIME = 0.3
PARTS = (256, 512, 1024)  # about so many tokens at a time in the ways that a ceiling is looked for
SMALL = 2**28  # weights; up to here pictures are drawn in float32, see `load_pipeline`
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class NetworkInputs:
    """What one call of the network reads: a caption, and if it is `guided` the empty one of one token too."""

    latents: Tensor
    t: Tensor
    texts: tuple[Tensor, ...]


def time_step(
    model: str = "lumina-image-2",
    size: int = 1024,
    *,
    random_weights: bool = True,
    guided: bool = False,
    against: Sequence[str] = ("diffusers",),
    quantized: str | None = None,
    tokens: int = 128,
    repeats: int = 3,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    error_size: int | None = None,
) -> Iterator[dict]:
    """Yield a row for our network and one for each of `against`: seconds, ratio, error, share of the ceiling.

    One untimed call of each, then they take turns, `repeats` times, on the CPU. `model` is a size by name
    with `random_weights`, else a model by name or folder. A guided step is one call of two rows with the text
    read before, as `draw_latents` does it, or two calls of diffusers. "ratio" is the median of their time
    over ours, turn by turn. "error" is the relative distance from float32 at `error_size` pixels (`size`, at
    most 256). "share" is how much of the time the matrix products alone would take, unquantised, in `dtype`.
    """
    sides = _check(model, random_weights, against, quantized, size, repeats, tokens)
    ours = random_network(model, dtype, seed) if random_weights else _load(model, dtype)
    dtype = ours.dtype
    size_of_error = error_size or min(size, ERROR_SIZE)
    call, small = (
        make_call(ours.config, side, tokens, guided, seed, dtype) for side in (size, size_of_error)
    )
    exact = exact_velocities(ours, small)
    others = {name: SIDES[name](ours) for name in sides}
    ceiling, tera = ceiling_seconds(ours.config, call, dtype)
    if quantized:
        quantize(ours, quantized)
    runs = {"lumina": our_step(ours, guided), **others}
    about = {"op": "step", "model": model, "size": size, "guided": guided, "tokens": tokens}
    about |= {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        errors = {name: _distance(run(small), exact) for name, run in runs.items()}
        times = take_turns({name: run_on(run, call) for name, run in runs.items()}, repeats)
    for name, seconds in times.items():
        marks = np.percentile(seconds, PERCENTILES)
        row = {**about, "side": name, "quantize": quantized if name == "lumina" else None}
        row |= {f"s_p{p}": float(mark) for p, mark in zip(PERCENTILES, marks, strict=True)}
        ratios = [other / one for other, one in zip(seconds, times["lumina"], strict=True)]
        marks = np.percentile(ratios, PERCENTILES)
        row |= {"ratio": float(marks[1]), "ratio_p20": float(marks[0]), "ratio_p80": float(marks[2])}
        row |= {"error": errors[name], "error_size": size_of_error, "share": ceiling / median(seconds)}
        yield row | {"tflop": tera, "ceiling_s": ceiling, "repeats": repeats}


def _check(
    model: str, random: bool, against: Sequence[str], kind: str | None, size: int, repeats: int, tokens: int
) -> list[str]:
    """Raise UsageError for what cannot be, before anything takes time; return each side once."""
    if kind is not None:
        check_quantizer(kind)
    for name in against:
        if name not in SIDES:
            raise UsageError(f"unknown side {name!r}; choose from {', '.join(SIDES)}")
    if random:
        config = NextDiTConfig.named(model)
        step, most = PIXELS * config.patch_size, config.axes_len[1] * PIXELS * config.patch_size
        if size % step or not 0 < size <= most:
            raise UsageError(f"size {size} is not a multiple of {step} up to {most}")
        if not 0 < tokens <= config.max_text_tokens:
            raise UsageError(f"tokens is {tokens}, but must be from 1 to {config.max_text_tokens}")
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}, but must be 1 or more")
    return list(dict.fromkeys(against))


def read_dtype(name: str | None) -> torch.dtype | None:
    """The dtype called `name`, one of DTYPES; None for none."""
    if name is not None and name not in DTYPES:
        raise UsageError(
            f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}; choose from {', '.join(DTYPES)}"
        )
    return getattr(torch, name) if name else None


def usual_dtype(model: NextDiT) -> torch.dtype:
    """The dtype in which a model of this size is drawn on this processor if nobody says otherwise."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return torch.float32 if numbers < SMALL else compute_dtype("cpu")


def random_network(name: str, dtype: torch.dtype | None = None, seed: int = 0) -> NextDiT:
    """A network of a published size whose every weight is drawn, straight into the dtype it keeps.

    Matrices keep the size of what goes through them, norms are near one and biases near zero.
    """
    model = empty_model(NextDiTConfig.named(name))
    model = model.to(dtype or usual_dtype(model)).to_empty(device="cpu").eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=random)
        else:
            weight.normal_(std=0.1, generator=random)
            weight += float("norm" in key or key == "cap_embedder.0.weight")
    return model


def _load(name: str, dtype: torch.dtype | None) -> NextDiT:
    from lumina_cli.core.models.locate import choose_model

    model = load_transformer(choose_model(name).folder / "transformer", dtype=dtype)
    return model.to(dtype or usual_dtype(model)).eval().requires_grad_(False)


def make_call(
    config: NextDiTConfig, size: int, tokens: int, guided: bool, seed: int, dtype: torch.dtype
) -> NetworkInputs:
    """Normal numbers for one picture of `size` pixels a side and one caption."""
    random = torch.Generator().manual_seed(seed)
    side = size // PIXELS
    latents = torch.randn(1, config.in_channels, side, side, generator=random)
    lengths = (tokens, 1) if guided else (tokens,)
    texts = tuple(torch.randn(1, length, config.text_dim, generator=random).to(dtype) for length in lengths)
    return NetworkInputs(latents.to(dtype), torch.tensor([TIME]), texts)


# --- the sides: functions of a call that return the velocity of each text


def our_step(model: NextDiT, guided: bool) -> Callable[[NetworkInputs], list[Tensor]]:
    """Our network; a guided step packs both rows into one call, with texts encoded when first seen."""
    encoded: dict[int, EncodedText] = {}

    def run(call: NetworkInputs) -> list[Tensor]:
        if not guided:
            return [model(call.latents, call.t, call.texts[0])]
        if id(call) not in encoded:
            encoded[id(call)] = _encode(model, call.texts)
        return list(model(call.latents, call.t, encoded[id(call)]).split(1))

    return run


def _encode(model: NextDiT, texts: Sequence[Tensor]) -> EncodedText:
    parts = [model.encode_text(text) for text in texts]
    lengths = tuple(length for part in parts for length in part.lengths)
    features = parts[0].features.new_zeros(len(lengths), max(lengths), parts[0].features.shape[2])
    for row, part in zip(features, parts, strict=True):
        row[: part.lengths[0]] = part.features[0]
    return EncodedText(features, lengths)


def diffusers_step(model: NextDiT) -> Callable[[NetworkInputs], list[Tensor]]:
    """diffusers' network on the memory of our weights; a call for each text, as its pipeline does."""
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

    with torch.device("meta"):
        theirs = Lumina2Transformer2DModel.from_config(config_to_diffusers(model.config))
    theirs.load_state_dict(to_diffusers(model.state_dict()), assign=True)
    config = theirs.config  # its tables of positions are no buffers, and so were left without memory
    theirs.rope_embedder = type(theirs.rope_embedder)(
        theta=10000,
        axes_dim=config.axes_dim_rope,
        axes_lens=config.axes_lens,
        patch_size=config.patch_size,
    )
    theirs.eval()

    def run(call: NetworkInputs) -> list[Tensor]:
        masks = [torch.ones(text.shape[:2], dtype=torch.bool) for text in call.texts]
        inputs = zip(call.texts, masks, strict=True)
        return [theirs(call.latents, call.t, *words, return_dict=False)[0] for words in inputs]

    return run


SIDES = {"diffusers": diffusers_step}


def run_on(run: Callable[[NetworkInputs], list[Tensor]], call: NetworkInputs) -> Callable[[], list[Tensor]]:
    """Bind a call."""
    return lambda: run(call)


# --- what they are held against


@torch.inference_mode()
def exact_velocities(model: NextDiT, call: NetworkInputs) -> list[Tensor]:
    """The velocity for each text in float32, by the ordinary padded blocks, widened one at a time."""

    def wide(module: nn.Module) -> nn.Module:
        return deepcopy(module).float()

    patch, (height, width) = model.config.patch_size, call.latents.shape[2:]
    grid, out = (height // patch, width // patch), []
    c = wide(model.t_embedder)(call.t)
    for text in call.texts:
        layout = padded_layout(model.config, (text.shape[1],), (grid,), text.device)
        words = wide(model.cap_embedder)(text.float())
        for block in model.context_refiner:
            words = wide(block)(words, None, *layout.text)
        x = wide(model.x_embedder)(patchify(call.latents.float(), patch))
        for block in model.noise_refiner:
            x = wide(block)(x, None, *layout.image, c)
        x = torch.cat([words, x], dim=1)
        for block in model.layers:
            x = wide(block)(x, None, *layout.joint, c)
        tokens = wide(model.final_layer)(x[:, text.shape[1] :], c)
        out.append(unpatchify(tokens, (height, width), patch))
    return out


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    one, two = (torch.cat([part.flatten() for part in parts]).double() for parts in (found, exact))
    return float((one - two).norm() / two.norm())


@torch.inference_mode()
def ceiling_seconds(
    config: NextDiTConfig, call: NetworkInputs, dtype: torch.dtype, repeats: int = 3
) -> tuple[float, float]:
    """Seconds that the matrix products of the blocks take here by themselves, and their TFLOP.

    Each shape counts as often as a call has it, at the quickest that was seen of it: warm, on memory that is
    there already, whole and in parts.
    """
    seconds, operations = 0.0, 0
    for (many, rows, inner, columns), count in list_matmuls(config, call).items():
        left, right = (
            torch.randn(shape).to(dtype) for shape in ((many, rows, inner), (many, inner, columns))
        )
        runs = _time_matmuls(left, right, torch.empty(many, rows, columns, dtype=dtype))
        for run in runs:
            run()  # not counted: it finds its memory
        seconds += count * min(_seconds(run) for run in runs for _ in range(repeats))
        operations += count * 2 * many * rows * inner * columns
    return seconds, operations / 1e12


def list_matmuls(config: NextDiTConfig, call: NetworkInputs) -> Counter:
    """How often a call has to multiply (n, rows, inner) by (n, inner, columns).

    A picture is refined once for all its captions, and these share the products of their linear layers;
    diffusers does everything once for each. Texts of several captions are read before the call.
    """
    D, F, d = config.dim, config.hidden_dim, config.head_dim
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
        found[1, T, D, F] += 2 * count
        found[1, T, F, D] += count
    rows = [*((text + image, config.num_layers) for text in texts), (image, config.num_refiner_layers)]
    for T, count in [*rows, *((text, config.num_refiner_layers) for text in texts[: len(texts) == 1])]:
        found[1, T, d, T] += count * config.num_heads
        found[1, T, T, d] += count * config.num_heads
    return found


def _time_matmuls(left: Tensor, right: Tensor, out: Tensor) -> list[Callable[[], object]]:
    """Ways to multiply left (n, rows, inner) by right (n, inner, columns), kept as a linear layer does."""
    if len(left) > 1:
        return [lambda: torch.bmm(left, right, out=out)]
    x, weight, y = left[0], right[0].T.contiguous(), out[0]
    cuts = {math.ceil(len(x) / math.ceil(len(x) / part)) for part in PARTS} | {len(x)}
    return [lambda: F.linear(x, weight), *(_in_parts(x, weight, y, cut) for cut in sorted(cuts))]


def _in_parts(x: Tensor, weight: Tensor, y: Tensor, rows: int) -> Callable[[], object]:
    parts = list(zip(x.split(rows), y.split(rows), strict=True))
    return lambda: [torch.mm(one, weight.T, out=two) for one, two in parts]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each, one of each in turn, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            seconds = _seconds(run)
            if turn:
                times[name].append(seconds)
    return times

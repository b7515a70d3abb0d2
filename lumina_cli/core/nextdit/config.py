"""The shapes of a Next-DiT, the published sizes by name, and the conversion to and from diffusers' config."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.limits import shorten
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.weights.relatives import find_class

# Configs are other people's files: larger numbers would take all memory before the weights are compared.
MOST_LAYERS, MOST_WIDTH, MOST_POSITIONS = 1000, 1 << 18, 1 << 16


@dataclass(frozen=True)
class NextDiTConfig:
    """Shapes of a Next-DiT.

        dim                  width of the residual stream
        num_layers           blocks over the joint sequence of text and image tokens
        num_heads            attention heads for queries
        num_kv_heads         attention heads for keys and values; divides num_heads
        text_dim             width of the text features
        axes_dim             parts of head_dim rotated by text position, row and column; their sum is head_dim
        axes_len             number of positions on each axis
        num_refiner_layers   blocks of the noise refiner, and of the context refiner
        multiple_of          divisor of the feed-forward width
        ffn_dim              feed-forward width; None: multiple_of * ceil(4 * dim / multiple_of)
        in_channels          latent channels
        patch_size           side of a patch in latent pixels
        norm_eps             epsilon of the RMS norms
        sample_size          default latent side when generating; it does not change the weights

    Raises:
        ValueError: if a field is invalid or the fields do not fit together.
    """

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    text_dim: int
    axes_dim: tuple[int, ...]
    axes_len: tuple[int, ...] = (300, 512, 512)
    num_refiner_layers: int = 2
    multiple_of: int = 256
    ffn_dim: int | None = None
    in_channels: int = 16
    patch_size: int = 2
    norm_eps: float = 1e-5
    sample_size: int = 128

    def __post_init__(self):
        for name, value in vars(self).items():
            check_field(name, name, value)
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        object.__setattr__(self, "axes_len", tuple(self.axes_len))
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if sum(self.axes_dim) != self.head_dim:
            raise ValueError(f"axes_dim {self.axes_dim} must add up to head_dim {self.head_dim}")
        if self.hidden_dim % self.multiple_of:
            raise ValueError(f"ffn_dim {self.ffn_dim} is not a multiple of multiple_of {self.multiple_of}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return min(self.dim, 1024)

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return self.ffn_dim or round_up(4 * self.dim, self.multiple_of)

    @property
    def max_text_tokens(self) -> int:
        """Longest caption, in tokens: the image needs one more position on the first axis."""
        return self.axes_len[0] - 1

    @classmethod
    def named(cls, name: str) -> NextDiTConfig:
        """Return the published size called `name`: nano, lumina-image-2, lumina-image-2-3b, -4b or -7b.

        Raises:
            UsageError: if no size has that name; the message lists the names.
        """
        if name not in NAMED:
            hint = did_you_mean(name, NAMED) or f"; choose from {', '.join(NAMED)}"
            raise UsageError(f"unknown model size {name!r}{hint}")
        return cls(**NAMED[name])


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether `value` is an integer of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_three(value: Any) -> bool:
    """Whether `value` is three integers from 1 to MOST_POSITIONS."""
    fits = isinstance(value, list | tuple) and len(value) == 3 and all(map(is_whole, value))
    return fits and max(value) <= MOST_POSITIONS


def is_positive(value: Any) -> bool:
    """Whether `value` is a positive finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def is_even_three(value: Any) -> bool:
    """Whether `value` is three even integers of at least 2."""
    return is_three(value) and not any(size % 2 for size in value)


WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "axes_dim": (is_even_three, "three even integers of at least 2"),
    "axes_len": (is_three, f"three integers of at least 1, and at most {MOST_POSITIONS}"),
    "norm_eps": (is_positive, "a positive number"),
    "ffn_dim": (lambda value: value is None or is_whole(value), "an integer of at least 1, or None"),
    "num_refiner_layers": (lambda value: is_whole(value, 0), "an integer of at least 0"),
}


def check_field(field: str, name: str, value: Any) -> None:
    """Check a value for a field of NextDiTConfig.

    name   what the message calls the field

    Raises:
        ValueError: if the value is invalid.
    """
    fits, wanted = WANTED.get(field, (is_whole, "an integer of at least 1"))
    if not fits(value):
        raise ValueError(f"{name} must be {wanted}, not {shorten(repr(value), 200)}")
    most = MOST_LAYERS if field.endswith("layers") else MOST_WIDTH
    if isinstance(value, int) and value > most:
        raise ValueError(f"{name} must be at most {most}, not {value}")


LARGE = {"num_kv_heads": 8, "text_dim": 2304}
NAMED: dict[str, dict[str, Any]] = {
    "nano": {
        "dim": 192,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
        "multiple_of": 16,
        "ffn_dim": 512,
        "text_dim": 256,
        "axes_dim": (16, 16, 16),
        "sample_size": 16,
    },
    "lumina-image-2": {**LARGE, "dim": 2304, "num_layers": 26, "num_heads": 24, "axes_dim": (32, 32, 32)},
    "lumina-image-2-3b": {**LARGE, "dim": 2592, "num_layers": 30, "num_heads": 24, "axes_dim": (36, 36, 36)},
    "lumina-image-2-4b": {**LARGE, "dim": 2880, "num_layers": 32, "num_heads": 24, "axes_dim": (40, 40, 40)},
    "lumina-image-2-7b": {**LARGE, "dim": 3840, "num_layers": 32, "num_heads": 32, "axes_dim": (40, 40, 40)},
}

DIFFUSERS_NAMES = {
    "hidden_size": "dim",
    "num_layers": "num_layers",
    "num_refiner_layers": "num_refiner_layers",
    "num_attention_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "multiple_of": "multiple_of",
    "cap_feat_dim": "text_dim",
    "axes_dim_rope": "axes_dim",
    "axes_lens": "axes_len",
    "in_channels": "in_channels",
    "patch_size": "patch_size",
    "norm_eps": "norm_eps",
    "sample_size": "sample_size",
}


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return multiple * math.ceil(number / multiple)


def config_to_diffusers(config: NextDiTConfig) -> dict[str, Any]:
    """Return the `config.json` of a diffusers Lumina2Transformer2DModel of the same shapes."""
    fields = {theirs: getattr(config, ours) for theirs, ours in DIFFUSERS_NAMES.items()}
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    multiplier = None
    if config.hidden_dim != round_up(4 * config.dim, config.multiple_of):
        multiplier = config.hidden_dim / (4 * config.dim)
        if int(multiplier * 4 * config.dim) < config.hidden_dim:  # diffusers truncates
            multiplier = math.nextafter(multiplier, math.inf)
    return {
        "_class_name": "Lumina2Transformer2DModel",
        "_diffusers_version": "0.33.0",
        **fields,
        "ffn_dim_multiplier": multiplier,
        "out_channels": None,
        "scaling_factor": 1.0,
    }


def config_from_diffusers(fields: dict[str, Any]) -> NextDiTConfig:
    """Return the config for the fields of a diffusers `config.json`.

    Raises:
        LuminaError: if a field is missing or invalid; the message names it.
    """
    kind = fields.get("_class_name", "Lumina2Transformer2DModel")
    if kind != "Lumina2Transformer2DModel":
        known = find_class(str(kind))
        use = f"; it is {known.refusal}" if known else ""
        raise LuminaError(f"expected the config of a Lumina2Transformer2DModel, not of a {kind}{use}")
    missing = [name for name in ("hidden_size", "num_layers", "num_attention_heads") if name not in fields]
    if missing:
        raise LuminaError(f"the config lacks {', '.join(missing)}")
    if fields.get("out_channels") not in (None, fields.get("in_channels", 16)):
        raise LuminaError(
            f"out_channels must be equal to in_channels ({fields.get('in_channels', 16)}), "
            f"not {fields['out_channels']}"
        )
    # diffusers' defaults of missing fields
    ours: dict[str, Any] = {"num_kv_heads": 8, "text_dim": 1024, "axes_dim": (32, 32, 32)}
    ours |= {our: fields[their] for their, our in DIFFUSERS_NAMES.items() if their in fields}
    ours["num_kv_heads"] = ours["num_kv_heads"] or ours["num_heads"]
    try:
        for their, our in DIFFUSERS_NAMES.items():
            if their in fields and not (our == "num_kv_heads" and not fields[their]):
                check_field(our, their, fields[their])
        multiplier, multiple_of = fields.get("ffn_dim_multiplier"), ours.get("multiple_of", 256)
        if multiplier is not None:
            if not is_positive(multiplier):
                raise ValueError(f"ffn_dim_multiplier must be a positive number or null, not {multiplier!r}")
            ours["ffn_dim"] = round_up(int(multiplier * 4 * ours["dim"]), multiple_of)
        return NextDiTConfig(**ours)
    except (ValueError, OverflowError) as error:
        raise LuminaError(f"the config does not describe a Next-DiT: {error}") from error


def infer_config(
    shapes: dict[str, tuple[int, ...]], axes_dim: tuple[int, ...] | None = None
) -> NextDiTConfig:
    """Return the config of weights with our names, from their shapes.

    shapes     tensor name -> shape
    axes_dim   head width per position axis, which shapes do not determine; None: equal thirds, as in every
               published size

    Raises:
        LuminaError: if a required tensor is missing, or the head width has no equal thirds.
    """
    try:
        dim, patch_width = shapes["x_embedder.weight"]
        head_dim = shapes["layers.0.attention.q_norm.weight"][0]
        kv_width = (shapes["layers.0.attention.qkv.weight"][0] - dim) // 2
        hidden_dim = shapes["layers.0.feed_forward.w1.weight"][0]
        text_dim = shapes["cap_embedder.0.weight"][0]
    except KeyError as error:
        raise LuminaError(f"these weights are not a complete Next-DiT: {error} is missing") from error
    except ValueError as error:
        raise LuminaError("these weights are not a Next-DiT: x_embedder.weight is not a matrix") from error
    if axes_dim is None and head_dim % 6:
        raise LuminaError(
            f"head width {head_dim} cannot be split evenly over three position axes, since it is not a "
            "multiple of 6; pass axes_dim"
        )
    multiple_of = next((size for size in (256, 16) if hidden_dim % size == 0), 1)
    try:
        return NextDiTConfig(
            dim=dim,
            num_layers=count_blocks(shapes, "layers"),
            num_refiner_layers=count_blocks(shapes, "noise_refiner"),
            num_heads=dim // head_dim,
            num_kv_heads=kv_width // head_dim,
            multiple_of=multiple_of,
            ffn_dim=None if hidden_dim == round_up(4 * dim, multiple_of) else hidden_dim,
            text_dim=text_dim,
            axes_dim=axes_dim or (head_dim // 3,) * 3,
            in_channels=patch_width // 4,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise LuminaError(f"the shapes of these weights do not form a Next-DiT: {error}") from error


def count_blocks(names: dict[str, Any], stack: str) -> int:
    """Return the number of blocks of `stack` among the tensor names."""
    return len({name.split(".")[1] for name in names if name.startswith(f"{stack}.")})

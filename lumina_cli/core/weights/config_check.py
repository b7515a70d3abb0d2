"""Numbers of config.json, checked against the weights before a network of that size is built."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.limits import shorten
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights

MOST_LAYERS, MOST_WIDTH = 4096, 1 << 24  # for weights whose headers cannot be read
_LAYERS = re.compile(r"(?:num|n)_\w*(?:layers?|blocks?)|layers_per_block|depth")
_LENGTH = "the length of "
_WIDTHS = frozenset(
    [
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_kv_heads",
        "head_dim",
        "hidden_dim",
        "cap_feat_dim",
        "block_out_channels",
        "latent_channels",
        "in_channels",
        "out_channels",
        "norm_num_groups",
    ]
)


def check_config(folder: Path) -> None:
    """Check config.json of a folder with weights; a folder without one is left to its reader.

    A network has at most as many layers as its weights have tensors, and is at most as wide as their largest
    dimension.

    Raises:
        LuminaError: if a number exceeds this; the message names it.
    """
    if not (folder / "config.json").is_file():
        return
    layers, width, known = MOST_LAYERS, MOST_WIDTH, "any model"
    try:
        shapes = [place.shape for place in LazyWeights(folder).locations.values()]
    except LuminaError:  # its reader reports it
        shapes = []
    if shapes:
        widest = max((side for shape in shapes for side in shape), default=1)
        layers, width, known = len(shapes), widest, "its weights"
    for name, value in _numbers(read_json(folder / "config.json")):
        counted = _LAYERS.fullmatch(name) or name.startswith(_LENGTH)
        most = layers if counted else width if name in _WIDTHS else None
        if most is not None and not value <= most:
            shown = f"{name} is {shorten(str(value), 40)}"
            raise LuminaError(f"{folder / 'config.json'}: {shown}, more than {known} can have ({most})")


def _numbers(config: dict) -> Iterator[tuple[str, float]]:
    """Yield (name, value) of every number; a list of names or sizes counts as a number of layers, too."""
    open_values: list[tuple[str, Any]] = list(config.items())
    while open_values:
        name, value = open_values.pop()
        if isinstance(value, dict):
            open_values += value.items()
        elif isinstance(value, list):
            if name in _WIDTHS or name.endswith("_types"):
                yield f"{_LENGTH}{name}", len(value)
            open_values += ((name, each) for each in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value if isinstance(value, int) or not math.isfinite(value) else int(value)

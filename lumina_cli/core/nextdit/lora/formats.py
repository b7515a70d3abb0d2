"""LoRA files of diffusers (peft), ComfyUI and kohya: tensor names to factors, and back.

Reading accepts every naming scheme, see `names.py`; writing follows what each tool reads.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.dialects import BLOCK_LINEAR, LINEAR, QKV_IN_DIFFUSERS
from lumina_cli.core.nextdit.lora.factors import LoraFactors, Pairs, Site, fuse, split
from lumina_cli.core.nextdit.lora.names import (
    FLAT_PREFIXES,
    LEAF,
    LEAVES,
    PREFIXES,
    TEXT_ENCODER,
    find_methods,
    find_site,
)
from lumina_cli.core.weights.files import format_names
from lumina_cli.core.weights.lora_files import AdapterFile
from lumina_cli.core.weights.relatives import find_lora_base, find_relative


def read_pairs(file: AdapterFile) -> tuple[Pairs, list[str]]:
    """Return the factors in a LoRA file, and the names of the tensors that are not used.

    Raises:
        LuminaError: if factors are incomplete, duplicate, misshaped or not finite, none belongs to a
            Next-DiT, or the file contains changes by another method than LoRA or DoRA.
    """
    _check_adapter(file)
    _check_method(file)
    found: dict[Site, dict[str, Tensor]] = {}
    names: dict[Site, str] = {}
    unused = []
    for name, tensor in file.tensors.items():
        leaf = LEAF.match(name)
        site = None if leaf is None or TEXT_ENCODER.match(name) else find_site(leaf[1])
        if leaf is None or site is None:
            unused.append(name)
            continue
        kind = LEAVES[leaf[2]]
        if kind in found.setdefault(site, {}):
            raise LuminaError(
                f"{file.path} contains {kind} of {_format_site(site)} twice; it must contain a single LoRA"
            )
        found[site][kind], names[site] = tensor, leaf[1]
    pairs = {site: _pair(parts, names[site], file) for site, parts in found.items()}
    both = [name for name, part in pairs if part and (name, None) in pairs]
    if both:
        raise LuminaError(f"{file.path} changes {both[0]} both as a fused layer and as separate ones")
    if not pairs:
        raise LuminaError(f"{file.path} is not a LoRA for this kind of model: {_describe_unknown(file)}")
    return pairs, unused


def _check_adapter(file: AdapterFile) -> None:
    """Raise LuminaError if a file contains the weights of a whole network, and name the network."""
    if any(LEAF.match(name) or name.startswith(FLAT_PREFIXES) for name in file.tensors):
        return
    if relative := find_relative(file.tensors):
        raise LuminaError(
            f"{file.path} is not a LoRA but a whole model: these are the weights {relative.refusal}"
        )


def _check_method(file: AdapterFile) -> None:
    """Raise LuminaError if a file has tensors of another method: applying only the rest would be half."""
    found = find_methods(file.tensors)
    if not found:
        return
    kinds = "; ".join(f"{method}: {format_names(names)}" for method, names in found.items())
    raise LuminaError(
        f"{file.path} contains {kinds}; lumina reads LoRA and DoRA. Merge the file into the weights with the "
        "program that trained it, or extract a LoRA from the result"
    )


def _describe_unknown(file: AdapterFile) -> str:
    if not file.tensors:
        return "it contains no tensors"
    if any(find_site(name.removesuffix(".weight")) for name in file.tensors):
        return "its tensors are the weights of a whole transformer; open it with --model"
    base = find_lora_base(file.tensors)
    other = f"; its names are those of a LoRA for {base}" if base else ""
    return f"none of its {format_names(list(file.tensors))} belongs to a layer of a Next-DiT{other}"


def _pair(parts: dict[str, Tensor], module: str, file: AdapterFile) -> LoraFactors:
    """Return the factors of one layer from its tensors in a file."""
    if lost := [kind for kind in ("down", "up") if kind not in parts]:
        raise LuminaError(f"{file.path} has no {lost[0]} matrix for {module}, only {', '.join(parts)}")
    if broken := [kind for kind, tensor in parts.items() if not torch.isfinite(tensor.float()).all()]:
        raise LuminaError(f"{file.path} contains NaN or inf in the {broken[0]} of {module}")
    down, up = (_matrix(parts[kind], kind, module, file) for kind in ("down", "up"))
    if len(down) != up.shape[1]:
        raise LuminaError(f"{file.path}: {module} has rank {len(down)} in down and {up.shape[1]} in up")
    magnitude = parts.get("magnitude")
    if magnitude is not None:
        if magnitude.ndim != 2 or 1 not in magnitude.shape:
            magnitude = magnitude.reshape(-1, 1)
        if tuple(magnitude.shape) not in ((len(up), 1), (1, down.shape[1])):
            raise LuminaError(
                f"{file.path}: the DoRA magnitude of {module} has shape {tuple(magnitude.shape)}; "
                "expected one value per output row or per input column"
            )
    alpha = (
        float(parts["alpha"].reshape(-1)[0]) if "alpha" in parts else _alpha(module, len(down), file.config)
    )
    return LoraFactors(down, up, None if alpha == len(down) else alpha, magnitude)


def _matrix(tensor: Tensor, kind: str, module: str, file: AdapterFile) -> Tensor:
    """Return a factor as a matrix; some tools store it as a 1x1 convolution."""
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise LuminaError(
            f"{file.path}: the {kind} of {module} must be a matrix, not of shape {tuple(tensor.shape)}"
        )
    return tensor


def _alpha(module: str, rank: int, config: dict) -> float | None:
    """Return the alpha of a layer in peft's settings (of equal effect for rsLoRA), or None if not set."""
    if "lora_alpha" not in config:
        return None
    name = module
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    patterns = config.get("alpha_pattern") or {}
    own = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)]
    alpha = float(own[0] if own else config["lora_alpha"])
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _format_site(site: Site) -> str:
    return f"{site[0]} ({site[1]})" if site[1] else site[0]


def to_diffusers(pairs: Pairs) -> tuple[dict[str, Tensor], dict]:
    """Return tensors in diffusers' names, and peft's settings if an alpha differs from its rank.

    Raises:
        LuminaError: if only some layers are DoRA, or a DoRA has column magnitudes.
    """
    pairs = split(pairs)
    doras = [pair.magnitude is not None for pair in pairs.values()]
    if any(doras) and not all(doras):
        raise LuminaError("diffusers does not support a LoRA in which only some layers are DoRA")
    if any(doras) and any(pair.magnitude.shape[1] != 1 for pair in pairs.values()):
        raise LuminaError("diffusers does not support DoRA magnitudes per input column")
    tensors, names = {}, {}
    for site, pair in pairs.items():
        names[site] = name = _diffusers_name(site)
        tensors[f"transformer.{name}.lora_A.weight"] = pair.down
        tensors[f"transformer.{name}.lora_B.weight"] = pair.up
        if pair.magnitude is not None:
            tensors[f"transformer.{name}.lora_magnitude_vector"] = pair.magnitude.flatten()
    if all(pair.alpha is None for pair in pairs.values()):
        return tensors, {}
    ranks = {names[site]: pair.rank for site, pair in pairs.items()}
    alphas = {names[site]: pair.own_alpha for site, pair in pairs.items()}
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return tensors, {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_pattern(name): own for name, own in sorted(ranks.items()) if own != rank},
        "alpha_pattern": {_pattern(name): own for name, own in sorted(alphas.items()) if own != alpha},
        "target_modules": sorted(names.values()),
        "use_dora": any(doras),
    }


def _usual(numbers: Collection[float]) -> float:
    """Return the most frequent number, the smallest of equally frequent ones."""
    return Counter(sorted(numbers)).most_common(1)[0][0]


def _pattern(name: str) -> str:
    """Return peft's pattern for exactly one layer."""
    return "^" + name.replace(".", r"\.")


def _diffusers_name(site: Site) -> str:
    name, part = site
    if name in LINEAR:
        return LINEAR[name]
    stack, index, inner = name.split(".", 2)
    return f"{stack}.{index}.{QKV_IN_DIFFUSERS[part] if part else BLOCK_LINEAR[inner]}"


def to_comfyui(pairs: Pairs) -> tuple[dict[str, Tensor], dict]:
    """Return tensors in the official names after `diffusion_model.`; alphas equal to the rank are omitted."""
    tensors = {}
    for (name, _), pair in fuse(pairs).items():
        start = f"diffusion_model.{name}"
        tensors |= {f"{start}.lora_A.weight": pair.down, f"{start}.lora_B.weight": pair.up}
        if pair.alpha is not None:
            tensors[f"{start}.alpha"] = scalar_tensor(pair.alpha, pair.down.dtype)
        if pair.magnitude is not None:
            tensors[f"{start}.dora_scale"] = pair.magnitude
    return tensors, {}


def to_kohya(pairs: Pairs) -> tuple[dict[str, Tensor], dict]:
    """Return tensors in the official names after `lora_unet_`, with underscores; every layer has an alpha."""
    tensors = {}
    for (name, _), pair in fuse(pairs).items():
        start = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{start}.alpha"] = scalar_tensor(pair.own_alpha, pair.down.dtype)
        tensors |= {f"{start}.lora_down.weight": pair.down, f"{start}.lora_up.weight": pair.up}
        if pair.magnitude is not None:
            tensors[f"{start}.dora_scale"] = pair.magnitude
    return tensors, {}


def scalar_tensor(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor, in `dtype` if it represents the number exactly, else in a wider dtype."""
    tensors = [torch.tensor(value, dtype=kind) for kind in (dtype, torch.float32, torch.float64)]
    return next(tensor for tensor in tensors if float(tensor) == value)


WRITERS: dict[str, Callable[[Pairs], tuple[dict[str, Tensor], dict]]] = {
    "diffusers": to_diffusers,
    "comfyui": to_comfyui,
    "kohya": to_kohya,
}


def detect_dialect(names: Iterable[str]) -> str:
    """Return the dialect of a LoRA's tensor names: a key of WRITERS, or "peft"."""
    known = [found[1] for name in names if (found := LEAF.match(name)) and find_site(found[1])]
    if any(name.startswith(FLAT_PREFIXES) for name in known):
        return "kohya"
    if any(name.startswith("base_model.") for name in known):
        return "peft"
    inner = [found[3] for name in known if (found := re.search(r"(\w+)\.(\d+)\.(.+)$", name))]
    return (
        "comfyui"
        if any(part.startswith(("attention.", "adaLN", "feed_forward.w")) for part in inner)
        else "diffusers"
    )

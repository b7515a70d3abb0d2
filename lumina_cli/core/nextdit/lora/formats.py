"""LoRA files of diffusers (peft), ComfyUI and kohya: tensor names to factors, and back.

Reading accepts every prefix with every naming scheme, since tools mix them; writing follows what each tool
reads.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.dialects import BLOCK_LINEAR, LINEAR, QKV, QKV_IN_DIFFUSERS, STACKS
from lumina_cli.core.nextdit.lora.factors import QKV_PARTS, LoraFactors, Pairs, Site, fuse, split
from lumina_cli.core.weights.files import format_names
from lumina_cli.core.weights.lora_files import AdapterFile

# names in files -> sites; both naming schemes for linear layers, since tools mix them
SITES: dict[str, Site] = {name: (pair[0], None) for pair in LINEAR.items() for name in pair}
BLOCK_SITES: dict[str, Site] = {
    QKV: (QKV, None),
    **{name: (QKV, part) for part, name in QKV_IN_DIFFUSERS.items()},
    **{f"attention.to_{part}": (QKV, part) for part in QKV_PARTS},
    **{name: (pair[0], None) for pair in BLOCK_LINEAR.items() for name in pair},
}
# the same tables for names with dots, and for names in which kohya replaced the dots by underscores
TABLES = {
    dot: [{name.replace(".", dot): site for name, site in table.items()} for table in (SITES, BLOCK_SITES)]
    for dot in "._"
}

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT_ENCODER = re.compile(r"(lora_te|text_encoder|te\d?_|te\.|conditioner)")
LEAVES = {
    "lora_A": "down", "lora_down": "down", "lora.down": "down",
    "lora_B": "up", "lora_up": "up", "lora.up": "up",
    "alpha": "alpha", "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
LEAF = re.compile(rf"^(.+?)\.({'|'.join(map(re.escape, LEAVES))})(?:\.(?!bias$|weight$)\w+)?(?:\.weight)?$")
BLOCK = re.compile(rf"^({'|'.join(STACKS)})[._](\d+)[._](.+)$")


def find_site(module: str) -> Site | None:
    """Return the layer that a name in a file stands for, in any naming scheme; None if unknown."""
    flat = next((prefix for prefix in FLAT_PREFIXES if module.startswith(prefix)), None)
    if flat is not None:
        return _site(module.removeprefix(flat), "_")
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), None):
        module = module.removeprefix(prefix)
    return _site(module, ".")


def _site(module: str, dot: str) -> Site | None:
    """Return the site of a name without prefix; `dot` is its separator."""
    whole, inner = TABLES[dot]
    if module in whole:
        return whole[module]
    found = BLOCK.match(module)
    if found is None or found[3] not in inner:
        return None
    name, part = inner[found[3]]
    return f"{found[1]}.{int(found[2])}.{name}", part


def is_adapter(names: Iterable[str]) -> bool:
    """Whether the tensor names in a file are those of a LoRA, not of a network."""
    return any((found := LEAF.match(name)) and found[2] != "alpha" for name in names)


def read_pairs(file: AdapterFile) -> tuple[Pairs, list[str]]:
    """Return the factors in a LoRA file, and the names of the tensors that are not used.

    Raises:
        LuminaError: if factors are incomplete, duplicate, misshaped or not finite, or none belongs to a
            Next-DiT.
    """
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
        raise LuminaError(
            f"{file.path} is not a LoRA for this kind of model: {_describe_unknown(file.tensors)}"
        )
    return pairs, unused


def _describe_unknown(names: Mapping[str, Tensor]) -> str:
    if not names:
        return "it contains no tensors"
    return f"none of its {format_names(list(names))} belongs to a layer of a Next-DiT"


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

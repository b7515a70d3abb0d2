"""Convert the weights of Next-DiT between dialects, and load and save diffusers folders.

Ours are the official names without the unused `norm_final.weight`, which is written back as ones. For the
names of all dialects see `dialects.py`. The functions map dicts of tensors of any size: widths come from the
tensors. If a `config` is given, our side of the conversion is checked against it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.config import (
    NextDiTConfig,
    config_from_diffusers,
    config_to_diffusers,
    infer_config,
)
from lumina_cli.core.nextdit.dialects import (
    COMFYUI_PREFIX,
    FROM_DIFFUSERS,
    PLAIN_NORM1,
    QKV,
    QKV_IN_DIFFUSERS,
    TO_DIFFUSERS,
    UNUSED,
    rename,
)
from lumina_cli.core.nextdit.model import NextDiT
from lumina_cli.core.weights.config_check import check_config
from lumina_cli.core.weights.files import check_state_dict, read_weights, write_weights
from lumina_cli.core.weights.json_files import read_json, write_json
from lumina_cli.core.weights.relatives import find_relative

__all__ = [
    "check_state_dict",
    "config_from_diffusers",
    "config_to_diffusers",
    "detect_dialect",
    "from_any",
    "from_comfyui",
    "from_diffusers",
    "from_official",
    "infer_config",
    "load_transformer",
    "read_weights",
    "save_transformer",
    "to_comfyui",
    "to_dialect",
    "to_diffusers",
    "to_official",
    "write_weights",
]

Weights = dict[str, Tensor]

QKV_WEIGHT = f"{QKV}.weight"
SCALES = (".scale_weight", ".weight_scale", "scaled_fp8", ".comfy_quant", ".absmax")  # of quantized weights
SPLIT_WEIGHTS = tuple(f"{module}.weight" for module in QKV_IN_DIFFUSERS.values())


def from_official(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename official weights to ours and drop the unused `norm_final.weight`.

        state_dict   name -> tensor, in the official names
        config       if given, the result is checked against its shapes
        returns      name -> tensor, for `NextDiT.load_state_dict`

    Raises:
        LuminaError: if the result does not fit `config`.
    """
    return checked({name: tensor for name, tensor in state_dict.items() if name != UNUSED}, config)


def to_official(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename our weights to the official names; the unused `norm_final.weight` is written as ones.

        state_dict   name -> tensor, as `NextDiT.state_dict` returns them
        config       if given, `state_dict` is checked against its shapes

    Raises:
        LuminaError: if `state_dict` is incomplete or does not fit `config`.
    """
    norm = require(checked(state_dict, config), "layers.0.attention_norm1.weight")
    return {**state_dict, UNUSED: torch.ones_like(norm)}


def from_comfyui(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename ComfyUI weights to ours; the other networks of an all-in-one file are left out.

        state_dict   name -> tensor, with the prefix `model.diffusion_model.`
        config       if given, the result is checked against its shapes

    Raises:
        LuminaError: if the result does not fit `config`.
    """
    start = len(COMFYUI_PREFIX)
    return from_official(
        {k[start:]: v for k, v in state_dict.items() if k.startswith(COMFYUI_PREFIX)}, config
    )


def to_comfyui(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename our weights to ComfyUI's names: the official ones with a prefix.

        state_dict   name -> tensor, as `NextDiT.state_dict` returns them
        config       if given, `state_dict` is checked against its shapes

    Raises:
        LuminaError: if `state_dict` is incomplete or does not fit `config`.
    """
    return {COMFYUI_PREFIX + name: tensor for name, tensor in to_official(state_dict, config).items()}


def from_diffusers(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename diffusers weights to ours; q, k and v are joined into one matrix.

        state_dict   name -> tensor, of a `Lumina2Transformer2DModel`
        config       if given, the result is checked against its shapes

    Raises:
        LuminaError: if one of q, k and v is missing, or if the result does not fit `config`.
    """
    ours = {}
    for name, tensor in state_dict.items():
        if not name.endswith(SPLIT_WEIGHTS):
            ours[rename(name, FROM_DIFFUSERS)] = tensor
            continue
        block = name[: -len(SPLIT_WEIGHTS[0])]
        if block + QKV_WEIGHT not in ours:
            ours[block + QKV_WEIGHT] = torch.cat(
                [require(state_dict, block + part) for part in SPLIT_WEIGHTS]
            )
    return checked(ours, config)


def to_diffusers(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Rename our weights to diffusers' names; the fused matrix is split into q, k and v.

        state_dict   name -> tensor, as `NextDiT.state_dict` returns them
        config       if given, `state_dict` is checked against its shapes

    Raises:
        LuminaError: if a fused matrix cannot be split, or if `state_dict` does not fit `config`.
    """
    theirs: Weights = {}
    for name, tensor in checked(state_dict, config).items():
        if name.endswith(QKV_WEIGHT):
            theirs |= {
                name[: -len(QKV_WEIGHT)] + part: rows
                for part, rows in zip(SPLIT_WEIGHTS, split_qkv(name, tensor), strict=True)
            }
        elif name.startswith("context_refiner.") and name.endswith(".attention_norm1.weight"):
            theirs[name.replace("attention_norm1", PLAIN_NORM1)] = tensor
        else:
            theirs[rename(name, TO_DIFFUSERS)] = tensor
    return theirs


def split_qkv(name: str, weight: Tensor) -> tuple[Tensor, ...]:
    """Split a fused weight into queries (as many rows as columns), keys and values (half of the rest each).

    Raises:
        LuminaError: if the shape is not that of a fused weight.
    """
    rows, width = weight.shape if weight.ndim == 2 else (0, 0)
    if rows <= width or (rows - width) % 2:
        raise LuminaError(
            f"{name} has shape {tuple(weight.shape)}, which is not that of fused queries, keys and values"
        )
    kv_width = (rows - width) // 2
    return weight.split([width, kv_width, kv_width])


def require(state_dict: Weights, name: str) -> Tensor:
    """Return the tensor `name`; LuminaError if it is missing."""
    if name not in state_dict:
        raise LuminaError(f"the weights have no {name}; they are not those of a complete Next-DiT")
    return state_dict[name]


def checked(ours: Weights, config: NextDiTConfig | None) -> Weights:
    """Return `ours`; LuminaError if they do not fit `config`."""
    if config is not None:
        check_state_dict(empty_model(config), ours, "the state dict")
    return ours


def empty_model(config: NextDiTConfig) -> NextDiT:
    """Return a network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return NextDiT(config)


def unchanged(state_dict: Weights, config: NextDiTConfig | None = None) -> Weights:
    """Return a copy of our weights, checked against `config`."""
    return dict(checked(state_dict, config))


Converter = Callable[[Weights, NextDiTConfig | None], Weights]
DIALECTS: dict[str, tuple[Converter, Converter]] = {  # to our names, from our names
    "lumina": (unchanged, unchanged),
    "official": (from_official, to_official),
    "diffusers": (from_diffusers, to_diffusers),
    "comfyui": (from_comfyui, to_comfyui),
}


def detect_dialect(state_dict: Mapping[str, Any], source: str | Path | None = None) -> str:
    """Return the dialect of the tensor names: lumina, official, diffusers or comfyui.

    source   the file that the tensors come from, which error messages name

    Raises:
        LuminaError: if the names belong to another network; the message names it and what reads it.
    """
    where = f"{source}: " if source else ""
    if relative := find_relative(state_dict):
        raise LuminaError(f"{where}these are the weights {relative.refusal}")
    if scales := [name for name in state_dict if name.endswith(SCALES)]:
        raise LuminaError(
            f"{where or 'the file '}contains quantized weights ({scales[0]}); use the same model in bf16, "
            "fp16 or fp32"
        )
    if any(name.startswith(COMFYUI_PREFIX + "cap_embedder.") for name in state_dict):
        return "comfyui"
    if any(name.startswith("time_caption_embed.") for name in state_dict):
        return "diffusers"
    if any(name.startswith("cap_embedder.") for name in state_dict):
        return "official" if UNUSED in state_dict else "lumina"
    first = ", ".join(sorted(state_dict)[:3]) or "none"
    raise LuminaError(
        f"{where}{len(state_dict)} tensors ({first}) are not weights of a Next-DiT in any known dialect"
    )


def from_any(
    state_dict: Weights, config: NextDiTConfig | None = None, source: str | Path | None = None
) -> Weights:
    """Rename weights of any dialect to ours; see `detect_dialect`.

    Raises:
        LuminaError: if the names belong to another network, or if the weights do not fit `config`.
    """
    return DIALECTS[detect_dialect(state_dict, source)][0](state_dict, config)


def to_dialect(state_dict: Weights, dialect: str, config: NextDiTConfig | None = None) -> Weights:
    """Rename our weights to the names of `dialect`, a key of DIALECTS."""
    return DIALECTS[dialect][1](state_dict, config)


def load_transformer(
    folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> NextDiT:
    """Load the network of a diffusers `transformer/` folder: config.json and weights, in one file or sharded.

        folder    the folder
        dtype     of the loaded weights; None: as stored
        device    of the loaded weights; None: the CPU

    Raises:
        LuminaError: if a file is missing or damaged, or if the weights do not fit the config.
    """
    folder = Path(folder)
    check_config(folder)
    config = config_from_diffusers(read_json(folder / "config.json"))
    # q, k and v are joined to new tensors: read apart from the others, their pages can be freed
    state_dict = from_any(read_weights(folder, apart=SPLIT_WEIGHTS), source=folder)
    model = empty_model(config)
    check_state_dict(model, state_dict, str(folder))
    model.load_state_dict(state_dict, assign=True)
    return model.to(device=device, dtype=dtype)


def save_transformer(model: NextDiT, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a diffusers `transformer/` folder; the weight file gets its name when it is complete.

        model     the network
        folder    the folder, created if needed
        dtype     of the written weights; None: that of the model

    Raises:
        LuminaError: if a file cannot be written.
    """
    folder = Path(folder)
    tensors = {name: tensor.to(dtype=dtype or tensor.dtype) for name, tensor in model.state_dict().items()}
    write_weights(to_diffusers(tensors), folder / "diffusion_pytorch_model.safetensors")
    # shards of an earlier model would be loaded instead of these weights
    for stale in folder.glob("diffusion_pytorch_model*.safetensors*"):
        if stale.name != "diffusion_pytorch_model.safetensors":
            stale.unlink()
    write_json(config_to_diffusers(model.config), folder / "config.json")

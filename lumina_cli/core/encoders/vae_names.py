"""Tensor names of the autoencoder in ComfyUI's and FLUX's files, and those of diffusers.

ComfyUI numbers the levels of the decoder from the finest, diffusers from the coarsest, and stores the
projections of the attention as 1x1 convolutions.
"""

import re

from torch import Tensor

from lumina_cli.core.errors import LuminaError

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LEVEL = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)$")
LEVEL_IN_DIFFUSERS = re.compile(
    r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)$"
)


def is_ldm(names: dict[str, Tensor]) -> bool:
    """Whether tensor names of an autoencoder are those of ComfyUI, not of diffusers."""
    return any(name.startswith(("decoder.up.", "encoder.down.")) for name in names)


def from_ldm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an autoencoder from ComfyUI's names to those of diffusers.

    Raises:
        LuminaError: if the decoder has no levels.
    """
    last = _last_level(tensors, LEVEL)
    theirs = {}
    for name, tensor in tensors.items():
        if found := LEVEL.match(name):
            half, level, block, rest = found.groups()
            number, way = (int(level), "down") if half == "encoder" else (last - int(level), "up")
            inner = f"resnets.{block}" if block is not None else f"{way}samplers.0"
            name = f"{half}.{way}_blocks.{number}.{inner}.{rest}"
        elif found := re.match(r"(\w+)\.mid\.block_(\d)\.(.+)$", name):
            name = f"{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{found[3]}"
        elif found := re.match(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)$", name):
            inner = ATTENTION.get(found[2], found[2])
            name = f"{found[1]}.mid_block.attentions.0.{inner}.{found[3]}"
            if inner in PROJECTIONS and tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0]
        else:
            name = re.sub(r"^(\w+)\.norm_out\.", r"\1.conv_norm_out.", name)
        theirs[name.replace(".nin_shortcut.", ".conv_shortcut.")] = tensor
    return theirs


def to_ldm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an autoencoder from diffusers' names to those of ComfyUI.

    Raises:
        LuminaError: if the decoder has no levels.
    """
    last = _last_level(tensors, LEVEL_IN_DIFFUSERS)
    names = {inner: ours for ours, inner in ATTENTION.items()}
    ours = {}
    for name, tensor in tensors.items():
        if found := LEVEL_IN_DIFFUSERS.match(name):
            half, level, block, rest = found.groups()
            number, way = (int(level), "down") if half == "encoder" else (last - int(level), "up")
            inner = f"block.{block}" if block is not None else f"{way}sample"
            name = f"{half}.{way}.{number}.{inner}.{rest}"
        elif found := re.match(r"(\w+)\.mid_block\.resnets\.(\d)\.(.+)$", name):
            name = f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
        elif found := re.match(r"(\w+)\.mid_block\.attentions\.0\.(\w+(?:\.0)?)\.(\w+)$", name):
            name = f"{found[1]}.mid.attn_1.{names.get(found[2], found[2])}.{found[3]}"
            if found[2] in PROJECTIONS and found[3] == "weight":
                tensor = tensor[:, :, None, None]
        else:
            name = re.sub(r"^(\w+)\.conv_norm_out\.", r"\1.norm_out.", name)
        ours[name.replace(".conv_shortcut.", ".nin_shortcut.")] = tensor
    return ours


def _last_level(tensors: dict[str, Tensor], pattern: re.Pattern) -> int:
    """Return the number of the last level of the decoder."""
    levels = [int(found[2]) for name in tensors if (found := pattern.match(name)) and found[1] == "decoder"]
    if not levels:
        raise LuminaError("the autoencoder has no decoder in the names of ComfyUI or diffusers")
    return max(levels)

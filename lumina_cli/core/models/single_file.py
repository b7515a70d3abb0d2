"""ComfyUI's single files: a transformer alone, or with the autoencoder and the text encoder.

    model.diffusion_model.*                the transformer, in the official names
    vae.*                                  the autoencoder, in the names of `vae_names`
    text_encoders.gemma2_2b.transformer.*  the text encoder, in the names of transformers
    text_encoders.spiece_model             its tokenizer, as SentencePiece stores it
    text_encoders.tokenizer_json           its tokenizer, as tokenizers stores it; written by lumina

Files that lumina writes also have the configs of all components in their header.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lumina_cli.core.encoders.vae_names import from_ldm, is_ldm, to_ldm
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.limits import parse_json, shorten
from lumina_cli.core.nextdit.convert import Weights, from_any, to_comfyui
from lumina_cli.core.weights.content import SAFETENSORS
from lumina_cli.core.weights.files import read_weights
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lora_files import read_header

HEADER = "lumina"  # key of the configs in the header of a file
VAE = re.compile(r"(?:vae|first_stage_model)\.(.+)$")
TEXT = re.compile(r"text_encoders\.(\w+)\.(?:transformer\.)?(?:model\.)?(.+)$")
WRITTEN = "text_encoders.gemma2_2b."
SPIECE, TOKENIZER = "text_encoders.spiece_model", "text_encoders.tokenizer_json"
UNUSED = ("logit_scale", "lm_head.weight")  # of a text encoder
LAYERS = re.compile(r"layers|blocks")
CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "plan": "plan.json",
}


@dataclass(frozen=True)
class FileParts:
    """The components in a single file; an empty one is not in the file.

    transformer    weights in our names
    vae            weights in the names of diffusers
    text_encoder   weights in the names of transformers
    tokenizer      name of a file -> its content
    configs        key of CONFIGS -> settings
    """

    transformer: Weights
    vae: Weights = field(default_factory=dict)
    text_encoder: Weights = field(default_factory=dict)
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    configs: dict[str, dict] = field(default_factory=dict)


def read_single_file(path: Path) -> FileParts:
    """Read the components in a weight file of any dialect, or the transformer in a folder of weights.

    Raises:
        LuminaError: if the file cannot be read, or is of another model; the message names which.
    """
    tensors = read_weights(path)
    vae, text, rest = {}, {}, {}
    for name, tensor in tensors.items():
        if found := VAE.match(name):
            vae[found[1]] = _plain(tensor)
        elif found := TEXT.match(name):
            text[found[2]] = _plain(tensor)
        elif name not in (SPIECE, TOKENIZER):
            rest[name] = _plain(tensor)
    files = {"tokenizer.model": SPIECE, "tokenizer.json": TOKENIZER}
    return FileParts(
        transformer=from_any(rest if len(rest) < len(tensors) else tensors, source=path),
        vae=from_ldm(vae) if is_ldm(vae) else vae,
        text_encoder={name: tensor for name, tensor in text.items() if name not in UNUSED},
        tokenizer={name: _bytes(tensors[key]) for name, key in files.items() if key in tensors},
        configs=_read_configs(path, len(tensors)),
    )


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor in bfloat16 if it is stored in float8, which layers do not compute in."""
    return tensor.to(torch.bfloat16) if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else tensor


def _bytes(tensor: Tensor) -> bytes:
    return tensor.to(torch.uint8).numpy().tobytes()


def _read_configs(path: Path, tensors: int) -> dict[str, dict]:
    """Return the configs in the header of a file that lumina wrote, or of a folder's config.json.

    tensors   number of tensors in the file, the most layers that a network of it can have
    """
    if path.is_dir():
        return {"transformer": read_json(path / "config.json")} if (path / "config.json").is_file() else {}
    if path.suffix not in SAFETENSORS:
        return {}
    try:
        found = parse_json(read_header(path).get(HEADER, "{}"))
    except (ValueError, LuminaError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(settings, dict) for settings in found.values()):
        raise LuminaError(f"{path}: the {HEADER!r} in its header is not a JSON object of configs")
    for name, settings in found.items():
        for key, value in settings.items():
            if LAYERS.search(key) and isinstance(value, int) and value > tensors:
                raise LuminaError(
                    f"{path}: the {HEADER!r} in its header has {key} {shorten(str(value), 40)} for its "
                    f"{name}, more than its {tensors} tensors"
                )
    return {name: settings for name, settings in found.items() if name in CONFIGS}


def write_single_file(folder: Path, transformer: Weights, path: Path) -> int:
    """Write a complete model folder as one file that ComfyUI opens as a checkpoint; return its tensors.

    transformer   weights in our names, instead of those in `folder`

    Raises:
        LuminaError: if a component cannot be read, or writing fails.
    """
    from safetensors.torch import save_file

    vae = to_ldm(read_weights(folder / "vae"))
    text = {
        name.removeprefix("model."): tensor for name, tensor in read_weights(folder / "text_encoder").items()
    }
    tensors = to_comfyui(transformer) | {f"vae.{name}": tensor for name, tensor in vae.items()}
    tensors |= {f"{WRITTEN}transformer.model.{name}": text[name] for name in text if name not in UNUSED}
    tensors[f"{WRITTEN}logit_scale"] = torch.ones(())
    for name, key in (("tokenizer.json", TOKENIZER), ("tokenizer.model", SPIECE)):
        if (folder / "tokenizer" / name).is_file():
            content = (folder / "tokenizer" / name).read_bytes()
            tensors[key] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    configs = {name: read_json(folder / file) for name, file in CONFIGS.items() if (folder / file).is_file()}
    header = {"format": "pt", HEADER: json.dumps(configs, sort_keys=True)}
    with disk_errors(path), atomic_write(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata=header)
    return len(tensors)

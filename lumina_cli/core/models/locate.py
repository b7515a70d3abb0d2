"""Find model folders: by name, path or hub id, in the layout of diffusers' `Lumina2Pipeline`.

`find_model` returns a complete pipeline; for the components that training starts from see `components.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models.hub import (
    HUB_ID,
    LUMINA_IMAGE_2,
    NETA_LUMINA,
    NETAYUME_LUMINA,
    OFFLINE,
    download,
    find_cached,
)
from lumina_cli.core.models.layout import COMPONENTS, model_folder
from lumina_cli.core.registry import ASSETS, MODELS, did_you_mean
from lumina_cli.core.weights.content import PICKLED, SAFETENSORS

ENOUGH_GIB = 15  # transformer and text encoder in bfloat16, the VAE, and the activations of a 1024x1024 image


@dataclass(frozen=True)
class ModelChoice:
    """A model that was found.

    name     as requested; for "auto", the name that was chosen
    folder   its model folder
    reason   why "auto" chose it, else None
    """

    name: str
    folder: Path
    reason: str | None = None


def choose_model(name: str | Path = "auto", frozen: str | Path | None = None) -> ModelChoice:
    """Find a model by a name in MODELS, a model or run folder, a weight file, a hub id, or "auto".

    frozen   model that provides the components that a weight file or a transformer's folder lacks

    Raises:
        UsageError: if `name` is none of these.
        LuminaError: if the folder is incomplete, or the hub cannot be reached.
    """
    if str(name) != "auto":
        return ModelChoice(str(name), find_model(name, frozen))
    if frozen is not None:
        raise UsageError("--frozen completes the transformer that --model names: name a file or a folder")
    name, reason = _choose_automatically()
    return ModelChoice(name, find_model(name), f"model auto: {name}, because {reason}")


def find_local(name: str | Path) -> ModelChoice:
    """Find a model as `choose_model` does, but without a download, and without opening a file by its path.

    Raises:
        UsageError: as `choose_model`.
        LuminaError: if the folder is incomplete, the model is not in the hub's cache, or `name` is a file.
    """
    if str(name) not in MODELS and Path(name).exists() and not Path(name).is_dir():
        raise LuminaError(f"the file {name} is opened only on request: add --model {name}")
    token = OFFLINE.set(True)
    try:
        return choose_model(name)
    finally:
        OFFLINE.reset(token)


def find_model(name: str | Path, frozen: str | Path | None = None) -> Path:
    """Return the model folder for a name in MODELS, a model or run folder, a weight file, or a hub id.

    A hub model is downloaded if needed. A weight file, such as ComfyUI's, and a folder that contains only a
    transformer become a model folder in the user's cache; `frozen` provides the components that they lack.

    Raises:
        UsageError: if `name` is none of these.
        LuminaError: if the folder is incomplete, or the hub cannot be reached.
    """
    path = Path(name)
    if str(name) not in MODELS and (path.is_file() or _is_transformer(path)):
        from lumina_cli.core.models.assemble import assemble_model

        return assemble_model(path if path.is_file() else _transformer_in(path), frozen)
    if frozen is not None and (str(name) in MODELS or path.is_dir() or HUB_ID.fullmatch(str(name))):
        raise UsageError(f"{name} is not a transformer alone: omit --frozen")
    if str(name) in MODELS:
        return MODELS.load(str(name))()
    if path.is_dir():
        return model_folder(path)
    if path.suffix in (*SAFETENSORS, *PICKLED):
        raise UsageError(f"{name} does not exist; --model names a weight file, a folder, a name or a hub id")
    if HUB_ID.fullmatch(str(name)):
        return download(str(name))
    known = [*MODELS.names(), "auto"]
    hint = did_you_mean(str(name), known)
    hint = hint or f"; it is not a folder, not a hub id and not one of {', '.join(known)}"
    raise UsageError(f"unknown model {str(name)!r}{hint}")


def _is_transformer(folder: Path) -> bool:
    """Whether a folder contains a transformer and no other component."""
    if (folder / "recipe.yaml").is_file() or any((folder / name).exists() for name in COMPONENTS[1:]):
        return False
    weights = [
        path for path in _transformer_in(folder).glob("*.*") if path.suffix in (*SAFETENSORS, *PICKLED)
    ]
    return bool(weights)


def _transformer_in(folder: Path) -> Path:
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def find_nano() -> Path:
    """Return the folder of the bundled model."""
    return model_folder(ASSETS / "nano")


def find_lumina_image_2() -> Path:
    """Return the folder of Lumina-Image 2.0 in the hub's cache, downloaded if needed."""
    return find_cached(LUMINA_IMAGE_2) or download(LUMINA_IMAGE_2)


def find_neta_lumina() -> Path:
    """Return the folder of Neta Lumina in the hub's cache, downloaded if needed."""
    return find_cached(NETA_LUMINA) or download(NETA_LUMINA)


def find_netayume_lumina() -> Path:
    """Return the folder of NetaYume Lumina v4 in the hub's cache, downloaded if needed."""
    return find_cached(NETAYUME_LUMINA) or download(NETAYUME_LUMINA)


def _choose_automatically() -> tuple[str, str]:
    """Return the model for "auto", and the reason."""
    if find_cached(LUMINA_IMAGE_2):
        return "lumina-image-2", "its weights are on this machine"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = max((torch.cuda.get_device_properties(n).total_memory / 2**30 for n in range(count)), default=0)
    if memory >= ENOUGH_GIB:
        return "lumina-image-2", f"there is a CUDA device with {memory:.0f} GiB"
    device = f"the CUDA device has only {memory:.0f} GiB" if count else "there is no CUDA device"
    return "nano", f"the weights of lumina-image-2 are not on this machine and {device}"

"""Find model folders: by name, path or hub id, in the layout of diffusers' `Lumina2Pipeline`.

`find_model` returns a complete pipeline; for the components that training starts from see `components.py`.
"""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import ASSETS, MODELS, did_you_mean
from lumina_cli.core.weights.content import check_content
from lumina_cli.core.weights.json_files import find_indexes, read_json, read_weight_map
from lumina_cli.core.weights.relatives import find_class

LUMINA_IMAGE_2 = "Alpha-VLLM/Lumina-Image-2.0"
ENOUGH_GIB = 15  # transformer and text encoder in bfloat16, the VAE, and the activations of a 1024x1024 image

WEIGHT_COMPONENTS = ("transformer", "vae", "text_encoder")
COMPONENTS = (*WEIGHT_COMPONENTS, "tokenizer")
HUB_FILES = ["model_index.json", *(f"{component}/*" for component in (*COMPONENTS, "scheduler"))]
_offline: ContextVar[bool] = ContextVar("offline", default=False)  # whether `download` reads the cache only
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


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


def choose_model(name: str | Path = "auto") -> ModelChoice:
    """Find a model by a name in MODELS, a model or run folder, a hub id, or "auto".

    Raises:
        UsageError: if `name` is none of these.
        LuminaError: if the folder is incomplete, or the hub cannot be reached.
    """
    if str(name) != "auto":
        return ModelChoice(str(name), find_model(name))
    name, reason = _choose_automatically()
    return ModelChoice(name, find_model(name), f"model auto: {name}, because {reason}")


def find_local(name: str | Path) -> ModelChoice:
    """Find a model as `choose_model` does, but without a download.

    Raises:
        UsageError: as `choose_model`.
        LuminaError: if the folder is incomplete, or the model is not in the hub's cache.
    """
    token = _offline.set(True)
    try:
        return choose_model(name)
    finally:
        _offline.reset(token)


def find_model(name: str | Path) -> Path:
    """Return the model folder for a name in MODELS, a model or run folder, or a hub id, downloaded if needed.

    Raises:
        UsageError: if `name` is none of these.
        LuminaError: if the folder is incomplete, or the hub cannot be reached.
    """
    if str(name) in MODELS:
        return MODELS.load(str(name))()
    if Path(name).is_dir():
        return model_folder(Path(name))
    if HUB_ID.fullmatch(str(name)):
        return download(str(name))
    known = [*MODELS.names(), "auto"]
    hint = did_you_mean(str(name), known)
    hint = hint or f"; it is not a folder, not a hub id and not one of {', '.join(known)}"
    raise UsageError(f"unknown model {str(name)!r}{hint}")


def find_nano() -> Path:
    """Return the folder of the bundled model."""
    return model_folder(ASSETS / "nano")


def find_lumina_image_2() -> Path:
    """Return the folder of Lumina-Image 2.0 in the hub's cache, downloaded if needed."""
    return find_cached(LUMINA_IMAGE_2) or download(LUMINA_IMAGE_2)


def newest_model(folder: Path) -> Path:
    """Return the exported model of a run folder; any other folder itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def model_folder(folder: Path) -> Path:
    """Return a complete model folder: `folder`, or the newest model in it if it is a run folder.

    Raises:
        LuminaError: if the run has no checkpoint yet, or the folder is incomplete.
    """
    if (folder / "recipe.yaml").is_file() or (folder / "model" / "transformer").is_dir():
        run, folder = folder, newest_model(folder)
        if folder == run:
            raise LuminaError(f"{run} has no checkpoint yet; train one with `lumina train ... out={run}`")
    check_pipeline(folder)
    missing = missing_files(folder)
    if len(missing) >= len(COMPONENTS):
        raise LuminaError(f"{folder} is not a model folder; it must contain {'/, '.join(COMPONENTS)}/")
    if missing:
        raise LuminaError(f"{folder} is incomplete; missing: {', '.join(missing)}")
    check_files(folder)
    return folder


def check_pipeline(folder: Path) -> None:
    """Check that the model_index.json of a folder, if it has one, is not that of another kind of model.

    Raises:
        LuminaError: if the pipeline is that of a known other model.
    """
    path = folder / "model_index.json"
    kind = str(read_json(path).get("_class_name")) if path.is_file() else ""
    if known := find_class(kind):
        raise LuminaError(f"{folder} is a {kind}: {known.refusal}")


def check_files(folder: Path) -> None:
    """Check that no file of a model folder is a Git LFS pointer, a web page or a part of a download.

    Raises:
        LuminaError: at the first such file.
    """
    for component in COMPONENTS:
        for pattern in ("*.json", "*.safetensors", "*.model"):
            for path in sorted((folder / component).glob(pattern)):
                if not path.name.startswith("."):
                    check_content(path)


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a model folder lacks; an empty list if it is complete.

    Raises:
        LuminaError: if an index of sharded weights is damaged.
    """
    missing = [name for component in WEIGHT_COMPONENTS for name in _missing_in(folder, component)]
    tokenizer = folder / "tokenizer"
    if not any((tokenizer / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer/tokenizer.json")
    return missing


def _missing_in(folder: Path, component: str) -> list[str]:
    """Return what a component with weights lacks; the folder's name if it does not exist."""
    if not (folder / component).is_dir():
        return [f"{component}/"]
    missing = [] if (folder / component / "config.json").is_file() else [f"{component}/config.json"]
    indexes = find_indexes(folder / component)
    shards = {name for index in indexes for name in read_weight_map(index).values()}
    if shards:
        lost = [name for name in sorted(shards) if not (folder / component / name).is_file()]
        return missing + [f"{component}/{name}" for name in lost]
    complete = any((folder / component).glob("*.safetensors"))
    return missing if complete else [*missing, f"{component}/*.safetensors"]


def find_cached(repo: str) -> Path | None:
    """Return the folder of a hub model if it is complete in the hub's cache, else None; works offline."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if not (Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
    return None if missing_files(folder) else folder


def download(repo: str) -> Path:
    """Return the folder of a hub model; downloads the files that are not in the hub's cache.

    Raises:
        LuminaError: if the hub cannot be reached, or the model is incomplete.
    """
    if _offline.get():
        folder = find_cached(repo)
        if folder is None:
            raise LuminaError(
                f"{repo!r} is not on this machine and is downloaded only on request: add --model {repo}"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub, the network and the disk raise different types
        message = f"{repo!r} is not a local folder and could not be downloaded from the hub"
        raise LuminaError(f"{message} ({first_line(error)}); `--model nano` works offline") from error
    return model_folder(folder)


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

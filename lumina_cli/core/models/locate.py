"""Models by name: from what follows `--model` to a model folder in diffusers' Lumina2Pipeline layout."""

import re
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import ASSETS, MODELS, did_you_mean
from lumina_cli.core.weights.json_files import find_indexes, read_weight_map

LUMINA_IMAGE_2 = "Alpha-VLLM/Lumina-Image-2.0"
ENOUGH_GIB = 15  # both networks in bfloat16, the autoencoder, and one picture of 1024 x 1024 under way

WEIGHED = ("transformer", "vae", "text_encoder")
PARTS = (*WEIGHED, "tokenizer")
HUB_FILES = ["model_index.json", *(f"{part}/*" for part in (*PARTS, "scheduler"))]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class ModelChoice:
    """A model that was found: what it is called, where it is, and, if `auto` chose it, why."""

    name: str
    folder: Path
    reason: str | None = None


def choose_model(name: str | Path = "auto") -> ModelChoice:
    """Find a model by a name of MODELS, a model or run folder, a hub id, or "auto".

    Raises UsageError for a word that is none of these, LuminaError for a folder that is not whole.
    """
    if str(name) != "auto":
        return ModelChoice(str(name), find_model(name))
    name, reason = _automatic()
    return ModelChoice(name, find_model(name), f"model auto: {name}, because {reason}")


def find_model(name: str | Path) -> Path:
    """Return the model folder that `name` stands for; hub models are fetched if they are not here yet."""
    if str(name) in MODELS:
        return MODELS.load(str(name))()
    if Path(name).is_dir():
        return model_folder(Path(name))
    if HUB_ID.fullmatch(str(name)):
        return fetch(str(name))
    hint = did_you_mean(str(name), [*MODELS.names(), "auto"])
    hint = hint or f"; it is no folder, no hub id and none of {', '.join([*MODELS.names(), 'auto'])}"
    raise UsageError(f"unknown model {str(name)!r}{hint}")


def find_nano() -> Path:
    """Return the folder of the embedded model."""
    return model_folder(ASSETS / "nano")


def find_lumina_image_2() -> Path:
    """Return the folder of Lumina-Image 2.0 in the hub's cache, fetched if it is not there."""
    return cached(LUMINA_IMAGE_2) or fetch(LUMINA_IMAGE_2)


def model_folder(folder: Path) -> Path:
    """Return `folder`, or the newest model in it if it is a run folder; LuminaError where it is not whole."""
    if (folder / "recipe.yaml").is_file() or (folder / "model" / "transformer").is_dir():
        run, folder = folder, newest_model(folder)
        if folder == run:
            raise LuminaError(f"{run} has no checkpoint yet; `lumina train ... out={run}` writes one")
    missing = missing_files(folder)
    if len(missing) >= len(PARTS):
        raise LuminaError(f"{folder} is not a model folder; it would hold {'/, '.join(PARTS)}/")
    if missing:
        raise LuminaError(f"{folder} is not whole: it has no {', '.join(missing)}")
    return folder


def newest_model(folder: Path) -> Path:
    """Return the model folder in a run folder, or `folder` itself if it does not contain one."""
    return folder / "model" if (folder / "model").is_dir() else folder


def missing_files(folder: Path) -> list[str]:
    """Return what a model folder lacks, by file name; an empty list if it is whole."""
    missing = [name for part in WEIGHED for name in _missing_of(folder, part)]
    tokenizer = folder / "tokenizer"
    if not any((tokenizer / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer/tokenizer.json")
    return missing


def _missing_of(folder: Path, part: str) -> list[str]:
    """Return what is missing of one part with weights; its folder's name if that is missing."""
    if not (folder / part).is_dir():
        return [f"{part}/"]
    missing = [] if (folder / part / "config.json").is_file() else [f"{part}/config.json"]
    shards = {name for index in find_indexes(folder / part) for name in read_weight_map(index).values()}
    if shards:
        return missing + [f"{part}/{name}" for name in sorted(shards) if not (folder / part / name).is_file()]
    return missing if any((folder / part).glob("*.safetensors")) else [*missing, f"{part}/*.safetensors"]


def cached(repo: str) -> Path | None:
    """Return the folder of a hub model that is whole on this machine, or None; never asks the network."""
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


def fetch(repo: str) -> Path:
    """Return the folder of a hub model, fetching what is not in the hub's cache; LuminaError in one line."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub, the network and the disk each raise their own kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        message = f"{repo!r} is no folder here and could not be fetched from the hub ({reason})"
        raise LuminaError(f"{message}; `--model nano` needs no network") from error
    return model_folder(folder)


def _automatic() -> tuple[str, str]:
    """Return the model for "auto" and the reason in words."""
    if cached(LUMINA_IMAGE_2):
        return "lumina-image-2", "its weights are on this machine"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = max((torch.cuda.get_device_properties(n).total_memory / 2**30 for n in range(count)), default=0)
    if memory >= ENOUGH_GIB:
        return "lumina-image-2", f"there is a CUDA device with {memory:.0f} GiB"
    device = f"the CUDA device has only {memory:.0f} GiB" if count else "there is no CUDA device"
    return "nano", f"the weights of lumina-image-2 are not on this machine and {device}"

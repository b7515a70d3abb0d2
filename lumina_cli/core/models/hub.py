"""Models of the Hugging Face hub: published ids, the local cache, downloads."""

import re
from contextvars import ContextVar
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.layout import COMPONENTS, check_pipeline, first_line, missing_files, model_folder

LUMINA_IMAGE_2 = "Alpha-VLLM/Lumina-Image-2.0"
NETA_LUMINA = "neta-art/Neta-Lumina-diffusers"
NETAYUME_LUMINA = "duongve/NetaYume-Lumina-Image-2.0-Diffusers-v40"
# models that were trained with another system prompt than "real"
SYSTEMS = dict.fromkeys(("neta-lumina", "netayume-lumina", NETA_LUMINA, NETAYUME_LUMINA), "neta")

OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)  # whether `download` reads the cache only
HUB_FILES = ["model_index.json", *(f"{component}/*" for component in (*COMPONENTS, "scheduler"))]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class NotOnThisMachine(LuminaError):
    """A hub model is not in the cache and may not be downloaded."""


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
        NotOnThisMachine: if it would have to be downloaded in an `OFFLINE` context.
    """
    if OFFLINE.get():
        folder = find_cached(repo)
        if folder is None:
            raise NotOnThisMachine(
                f"{repo!r} is not on this machine and is downloaded only on request: add --model {repo}"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        check_pipeline(Path(snapshot_download(repo, allow_patterns=["model_index.json"])))
        folder = Path(snapshot_download(repo, allow_patterns=HUB_FILES))
    except LuminaError:
        raise
    except Exception as error:  # the hub, the network and the disk raise different types
        message = f"{repo!r} is not a local folder and could not be downloaded from the hub"
        raise LuminaError(f"{message} ({first_line(error)}); the model nano works offline") from error
    return model_folder(folder)

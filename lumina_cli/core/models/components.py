"""Components of models for training: the frozen components, and the transformer to start from."""

from pathlib import Path

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models.layout import check_export, newest_model
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.registry import ASSETS, MODELS, did_you_mean

FROZEN = ("vae", "text_encoder", "tokenizer")
MODEL_INDEX = {
    "_class_name": "Lumina2Pipeline",
    "_diffusers_version": "0.33.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Gemma2Model"],
    "tokenizer": ["transformers", "GemmaTokenizer"],
    "transformer": ["diffusers", "Lumina2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def find_components(name: str) -> Path:
    """Return the folder that contains the frozen components of a model.

    `name` is a key of MODELS, a model folder, or a run folder. The folder needs no transformer: the bundled
    model provides its frozen components while its transformer is being trained.

    Raises:
        UsageError: if `name` is neither in MODELS nor a folder.
        LuminaError: if a component is missing from the folder.
    """
    if name in MODELS:
        embedded = ASSETS / name
        return _check_components(embedded) if embedded.is_dir() else MODELS.load(name)()
    if not Path(name).is_dir():
        known = MODELS.names()
        hint = did_you_mean(name, known) or f"; it is not a model folder and not one of {', '.join(known)}"
        raise UsageError(f"frozen: unknown model {name!r}{hint}")
    folder = newest_model(Path(name))
    if folder != Path(name):
        check_export(Path(name))
    return _check_components(folder)


def _check_components(folder: Path) -> Path:
    missing = [component for component in FROZEN if not (folder / component).is_dir()]
    if missing:
        raise LuminaError(f"{folder} has no {', '.join(missing)}; frozen= must name a model folder")
    return folder


def find_transformer(name: str) -> Path:
    """Return the folder of a transformer's weights: in a run folder, in a model folder, or `name` itself.

    Raises:
        LuminaError: if none of these folders contains a config.json.
    """
    folders = [newest_model(Path(name)) / "transformer", Path(name) / "transformer", Path(name)]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder is not None and folder.parent == Path(name) / "model":
        check_export(Path(name))
    if folder is None:
        hint = did_you_mean(name, NAMED) or f"; it is not a model folder and not one of {', '.join(NAMED)}"
        raise LuminaError(f"model {name!r} is unknown{hint}")
    return folder

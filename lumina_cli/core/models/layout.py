"""The layout of model folders, that of diffusers' `Lumina2Pipeline`: which files a complete one has."""

from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.weights.checksums import SUMS, find_damage, read_checksums
from lumina_cli.core.weights.content import check_content
from lumina_cli.core.weights.json_files import find_indexes, read_json, read_weight_map
from lumina_cli.core.weights.relatives import find_class

WEIGHT_COMPONENTS = ("transformer", "vae", "text_encoder")
MAX_VERIFIED = 1 << 30  # bytes; `train --resume` verifies larger files
_SETTINGS = (".json", ".jinja", ".model", ".txt")  # configs and the tokenizer: small
COMPONENTS = (*WEIGHT_COMPONENTS, "tokenizer")


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
        check_export(run)
    check_pipeline(folder)
    missing = missing_files(folder)
    if len(missing) >= len(COMPONENTS):
        raise LuminaError(f"{folder} is not a model folder; it must contain {'/, '.join(COMPONENTS)}/")
    if missing:
        raise LuminaError(f"{folder} is incomplete; missing: {', '.join(missing)}")
    check_files(folder)
    return folder


def check_export(run: Path) -> None:
    """Compare the transformer and all settings that a run exported with their checksums.

    Weights of other components, and files too large to read twice, are skipped; so is plan.json, which users
    may edit.

    Raises:
        LuminaError: if it is damaged.
    """
    folder = run / "model"
    names = [name for name in read_checksums(folder) or () if is_verified(folder, name)]
    if reason := find_damage(folder, names):
        raise LuminaError(
            f"{folder} is damaged: {reason}; `lumina train out={run} --resume` exports it again; "
            f"if you changed it, delete {folder / SUMS}"
        )


def is_verified(folder: Path, name: str, most: int | None = MAX_VERIFIED) -> bool:
    """Whether a file of an exported model is compared with its checksum; `most` limits weights, in bytes."""
    path = folder / name
    if name.startswith("transformer/"):
        return most is None or not path.is_file() or path.stat().st_size <= most
    # `missing_files` reports a file that does not exist, unless the model works without it
    return path.suffix in _SETTINGS and name != "plan.json" and path.is_file()


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
                # empty weights are left to their reader: `--explain` reads no weights
                empty = path.suffix == ".safetensors" and not path.stat().st_size
                if not path.name.startswith(".") and not empty:
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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""Fingerprints of weights: short digests that change if training or a merged LoRA changes the weights."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EDGE = 1 << 20  # bytes hashed at each end of a large file
PAGE = 4 << 10  # bytes hashed at each offset between the ends
APART = 1 << 20  # smallest distance of two offsets
MOST = 2048  # offsets per file: 8 MB to read even for a file of 5 GB

WEIGHT_COMPONENTS = ("transformer", "vae", "text_encoder")
# settings of a config.json that do not change what a component computes here
NEUTRAL = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
# what earlier versions called the weights of the bundled model, which had other captioners then
EARLIER = {"3987e1c389ff": ("dada46198571", "2ad3c77615c8", "5fff343a89c3")}


@dataclass(frozen=True)
class ModelFingerprint:
    """The identity of a model folder.

    current   12 hex digits
    earlier   what earlier versions, which hashed every weight file in the folder, called the same model
    """

    current: str
    earlier: tuple[str, ...] = ()

    def recognize(self, found: str) -> str:
        """Return `current` for any fingerprint of this model, and any other fingerprint unchanged."""
        return self.current if found in self.earlier else found


def identify_model(folder: Path) -> ModelFingerprint:
    """Return the fingerprint of a model folder, and those that earlier versions gave to the same model."""
    current = fingerprint(folder)
    generating = [path for name in WEIGHT_COMPONENTS for path in (folder / name).glob("*.safetensors")]
    earlier = {fingerprint_weights(folder), _hash_weights(folder, generating), *EARLIER.get(current, ())}
    return ModelFingerprint(current, tuple(sorted(earlier)))


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits that change with what generates: the components and their settings.

    Transformer, VAE and text encoder count with their weights and configs, the tokenizer with its files, and
    the scheduler with its config. A captioner or detector in the same folder does not, nor do file times and
    the layout of JSON.
    """
    digest = hashlib.sha256()
    for path in _generating_files(folder):
        _hash_file(digest, path, path.relative_to(folder))
    return digest.hexdigest()[:12]


def _generating_files(folder: Path) -> list[Path]:
    """Return the files that determine an image, sorted by path."""
    files = [path for name in WEIGHT_COMPONENTS for path in (folder / name).glob("*.safetensors")]
    files += [folder / name / "config.json" for name in WEIGHT_COMPONENTS]
    files += [*(folder / "tokenizer").glob("*.json"), *(folder / "tokenizer").glob("*.model")]
    files += [folder / "scheduler" / "scheduler_config.json"]
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def fingerprint_weights(folder: Path) -> str:
    """Return 12 hex digits that change with any weight file in a folder or in its subfolders."""
    return _hash_weights(folder, {*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")})


def hash_files(paths: Iterable[Path]) -> str:
    """Return 12 hex digits that change with the content or the names of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        _hash_pages(digest, path, Path(path.name))
    return digest.hexdigest()[:12]


def _hash_weights(folder: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        _hash_pages(digest, path, path.relative_to(folder))
    return digest.hexdigest()[:12]


def _hash_file(digest: "hashlib._Hash", path: Path, name: Path) -> None:
    """Add a file to a digest: a config by its settings, any other file by its pages."""
    if path.suffix == ".json" and path.name.endswith("config.json"):
        try:
            settings = json.loads(path.read_bytes())
        except (ValueError, RecursionError):  # reported when the component is loaded
            settings = None
        if isinstance(settings, dict):
            kept = {key: settings[key] for key in settings if key[:1] != "_" and key not in NEUTRAL}
            digest.update(f"{name} {json.dumps(kept, sort_keys=True)}".encode())
            return
    _hash_pages(digest, path, name)


def _hash_pages(digest: "hashlib._Hash", path: Path, name: Path) -> None:
    """Add a file to a digest: its size, 1 MiB at each end and a page at each of `page_offsets`.

    This detects every change of whole matrices; a change of a few parameters far from the ends may go
    unnoticed.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:  # a buffered file would read far more than the pages
        digest.update(f"{name} {size}".encode() + file.read(EDGE))
        for place in page_offsets(size):
            file.seek(place)
            digest.update(file.read(PAGE))
        file.seek(max(size - EDGE, 0))
        digest.update(file.read(EDGE))


def page_offsets(size: int) -> range:
    """Return the byte offsets of the pages to hash in a file of `size` bytes: at most MOST of them."""
    apart = -(-max(size - 2 * EDGE, 0) // (MOST * PAGE)) * PAGE
    return range(EDGE, size - EDGE, max(APART, apart))


def digest_adapter(path: Path) -> str:
    """Return 12 hex digits of a LoRA file; for peft's format the config next to it is included."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():  # it holds lora_alpha
        digest.update(config.read_bytes())
    return digest.hexdigest()[:12]

"""Fingerprints of weights: short digests that change if training or a merged LoRA changes the weights."""

import hashlib
from pathlib import Path

EDGE = 1 << 20  # bytes hashed at each end of a weight file
PAGE = 4 << 10  # bytes hashed at each offset between the ends
APART = 1 << 20  # smallest distance of two offsets
MOST = 2048  # offsets per file: 8 MB to read even for a file of 5 GB


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits that change with the weights of a model folder.

    For each weight file, its size, 1 MiB at each end and a page at each of `page_offsets` are hashed. This
    detects every change of whole matrices; a change of a few parameters far from the ends may go unnoticed.
    """
    digest = hashlib.sha256()
    for path in sorted({*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")}):
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:  # a buffered file would read far more than the pages
            digest.update(f"{path.relative_to(folder)} {size}".encode() + file.read(EDGE))
            for place in page_offsets(size):
                file.seek(place)
                digest.update(file.read(PAGE))
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:12]


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

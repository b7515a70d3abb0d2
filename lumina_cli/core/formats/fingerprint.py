"""A short name for the weights of a model folder: another one wherever training has changed them."""

import hashlib
from pathlib import Path

EDGE = 1 << 20  # bytes of a weight file that its fingerprint reads at each end


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits that change with the weights of a model folder (sizes, and 1 MiB at each end)."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)} {size}".encode() + file.read(EDGE))
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:12]

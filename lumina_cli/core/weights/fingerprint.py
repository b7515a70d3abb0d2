"""A short name for weights: another one wherever training, or a LoRA merged into them, has changed them."""

import hashlib
from pathlib import Path

EDGE = 1 << 20  # bytes of a weight file that its fingerprint reads at each end
PAGE = 4 << 10  # bytes that it reads at each place between
APART = 1 << 20  # from one such place to the next, more where there would be over MOST
MOST = 2048  # places in a file: even of 5 GB they are 8 MB to read


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits that change with the weights of a model folder.

    Of each weight file its size, 1 MiB at each end and a page at every one of `places` between are read. That
    sees whatever changes matrices as a whole; a change of a few numbers far from the ends may stay unseen.
    """
    digest = hashlib.sha256()
    for path in sorted({*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")}):
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:  # a buffer would read far more than the pages
            digest.update(f"{path.relative_to(folder)} {size}".encode() + file.read(EDGE))
            for place in page_offsets(size):
                file.seek(place)
                digest.update(file.read(PAGE))
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:12]


def page_offsets(size: int) -> range:
    """Return where pages between the ends of a file of so many bytes begin: MOST of them at most."""
    apart = -(-max(size - 2 * EDGE, 0) // (MOST * PAGE)) * PAGE
    return range(EDGE, size - EDGE, max(APART, apart))


def digest_adapter(path: Path) -> str:
    """Return 12 hex digits of a LoRA: of its whole file and, if it is peft's, of the config beside it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():  # says how strong the matrices are
        digest.update(config.read_bytes())
    return digest.hexdigest()[:12]

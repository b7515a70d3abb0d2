"""The number of rows of a SOURCE, if it is known without reading all of it."""

import os
from pathlib import Path

from lumina_cli.core.images.io import SUFFIXES
from lumina_cli.core.shards.reader import read_totals

LARGEST = 256 << 20  # bytes; larger files of rows are not counted


def count_source(source: str) -> int | None:
    """Return the number of rows of a SOURCE (see source.py), or None if only reading it would show that."""
    path, (kind, _, rest) = Path(source), source.partition(":")
    if kind == "nano" and not path.exists():
        number = rest.partition("?")[0]
        return int(number) if number.isdecimal() and len(number) < 20 else None
    if path.is_dir():
        if any(path.glob("*.tar")):
            totals = path / "shards.json"
            found = (read_totals(path) or {}).get("samples") if totals.is_file() else None
            return found if isinstance(found, int) else None
        return _count_images(path)
    if not path.is_file() or path.suffix == ".tar":
        return None
    if path.suffix.lower() in SUFFIXES:
        return 1
    if path.stat().st_size > LARGEST:
        return None
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _count_images(path: Path) -> int:
    """Return the number of images below a folder, without hidden files and folders, as `read_folder` does."""
    count = 0
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in files)
    return count

"""A file name for every picture: safe, in one folder, given to one picture only, known before it is drawn."""

import re
import unicodedata
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats.images import read_metadata
from lumina_cli.core.sampling.metadata import Origin, from_metadata

LONGEST_SLUG = 60


class FileNames:
    """Names in the folder `out`; ask for them in the order of the rows, and they are the same every time."""

    def __init__(self, out: Path, format: str, count: int):
        self.out, self.format, self.count = out, format, count
        self.used: set[Path] = set()

    def of(self, index: int, row: dict, origin: Origin) -> tuple[Path, bool]:
        """Return a path, and whether it already is this picture.

        The path is the row's "key", or else its position and prompt; the seed; the number. Where another
        picture has that name already, name-2, name-3...
        """
        key = slug(str(row.get("key", "")))
        stem = key or "-".join(filter(None, (f"{index:05d}", slug(origin.prompt))))
        stem = f"{stem}-s{origin.seed}" + (f"-{origin.number}" if self.count > 1 else "")
        path, again = self.out / f"{stem}.{self.format}", 1
        while path in self.used or (path.exists() and drawn_from(path) != origin):
            again += 1
            path = self.out / f"{stem}-{again}.{self.format}"
        self.used.add(path)
        return path, path.exists()


def drawn_from(path: Path) -> Origin | None:
    """Return how a picture was drawn, from the head of its file; None where it does not say."""
    try:
        return from_metadata(read_metadata(path))
    except LuminaError:  # no picture of ours
        return None


def slug(text: str) -> str:
    """Return the letters and digits of `text`, of any script, joined by dashes; at most about 60 of them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words).encode()[: 3 * LONGEST_SLUG].decode(errors="ignore")[:LONGEST_SLUG].strip("-_")

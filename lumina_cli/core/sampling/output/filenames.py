"""A file name for every picture: safe, in one folder, given to one picture only, known before it is drawn."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import read_metadata, save_image
from lumina_cli.core.sampling.output.metadata import GenerationRecord, from_metadata, to_metadata

LONGEST_SLUG = 60
Same = Callable[[Path], bool]


class FileNames:
    """Names in the folder `out`; ask for them in the order of the rows, and they are the same every time."""

    def __init__(self, out: Path, format: str, count: int):
        self.out, self.format, self.count = out, format, count
        self.used: dict[Path, str] = {}  # and what each name begins with

    def of(self, index: int, row: dict, origin: GenerationRecord) -> tuple[Path, bool]:
        """Return a path, and whether it already is this picture.

        The path is the row's "key", or else its position and prompt; the seed; the number. Where another
        picture has that name already, name-2, name-3...
        """
        key = slug(str(row.get("key", "")))
        stem = key or "-".join(filter(None, (f"{index:05d}", slug(origin.prompt))))
        stem = f"{stem}-s{origin.seed}" + (f"-{origin.number}" if self.count > 1 else "")
        return self.free(stem, self.format, lambda path: drawn_from(path) == origin)

    def free(self, stem: str, format: str, same: Same) -> tuple[Path, bool]:
        """Return stem, stem-2 or stem-3..., the first that is nobody's, and whether that file is there.

        `same` says whether a file that is there may be replaced.
        """
        path, again = self.out / f"{stem}.{format}", 1
        while path in self.used or (path.exists() and not same(path)):
            again += 1
            path = self.out / f"{stem}-{again}.{format}"
        self.used[path] = stem
        return path, path.exists()

    def save_drawn(self, picture: Image.Image, path: Path, origin: GenerationRecord) -> Path:
        """Write a picture to a path that `of` gave, with its origin inside; see `save`."""
        return self.save(picture, path, to_metadata(origin), lambda path: drawn_from(path) == origin)

    def save(self, picture: Image.Image, path: Path, metadata: dict, same: Same) -> Path:
        """Write a picture to a path that `free` gave; return it, or the next one if that is another's by now.

        So two runs in one folder lose no picture; see `atomic_write`. LuminaError where the disk refuses.
        """
        while True:
            there = path.exists()
            if there and not same(path):
                path, there = self.free(self.used[path], path.suffix[1:], same)
            try:
                return save_image(picture, path, metadata, replace=there)
            except FileExistsError as error:
                if not path.exists():  # it is the folder that is no folder
                    raise LuminaError(f"cannot write {path}: {error.strerror}") from error
            except OSError as error:
                raise LuminaError(f"cannot write {path}: {error.strerror or error}") from error


def drawn_from(path: Path) -> GenerationRecord | None:
    """Return how a picture was drawn, from the head of its file; None where it does not say."""
    try:
        return from_metadata(read_metadata(path))
    except LuminaError:  # no picture of ours
        return None


def slug(text: str) -> str:
    """Return the letters and digits of `text`, of any script, joined by dashes; at most about 60 of them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words).encode()[: 3 * LONGEST_SLUG].decode(errors="ignore")[:LONGEST_SLUG].strip("-_")

"""File names of images: safe, unique within a folder, and known before an image is generated."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import read_metadata, save_image
from lumina_cli.core.io.filesystem import list_names
from lumina_cli.core.io.location import Location
from lumina_cli.core.io.remote import AnyPath, to_path
from lumina_cli.core.sampling.output.metadata import GenerationRecord, from_metadata, to_metadata

MAX_SLUG = 60  # characters
MAX_DIGITS = 5  # of the number of an image in names that are looked up
Replaceable = Callable[[AnyPath], bool]


class FileNames:
    """Names in the folder `out`, for `count` images per row.

    Names depend on the names assigned before and on the files that exist. So a second run over the same rows
    assigns the same names, and finds the images of the first.
    """

    def __init__(self, out: Location, format: str, count: int):
        self.out, self.format, self.count = to_path(out), format, count
        self.stems: dict[AnyPath, str] = {}  # assigned path -> stem without the suffix that makes it unique
        self.listed: set[str] | None = None  # files at a URL when the first name was assigned

    def assign(self, index: int, row: dict, record: GenerationRecord) -> tuple[AnyPath, bool]:
        """Return the path of an image, and whether the file already contains it.

        The name is the row's "key", or its index and prompt, then the seed and the number; name-2, name-3...
        if another image has that name.
        """
        key = slug(str(row.get("key", "")))
        stem = key or "-".join(filter(None, (f"{index:05d}", slug(record.prompt))))
        stem = f"{stem}-s{record.seed}"
        if self.count > 1:
            stem = self._add_number(stem, record)
        return self.next_free(stem, self.format, lambda path: record.describes(read_record(path)))

    def _add_number(self, stem: str, record: GenerationRecord) -> str:
        """Add the number of an image, with as many digits as the largest one, so that names sort.

        An image of an earlier version, or of a run with another count, keeps its name.
        """
        width = len(str(self.count - 1))
        for digits in (width, *(other for other in range(1, MAX_DIGITS) if other != width)):
            name = f"{stem}-{record.number:0{digits}d}"
            path = self.out / f"{name}.{self.format}"
            if self.exists(path) and record.describes(read_record(path)):
                return name
        return f"{stem}-{record.number:0{width}d}"

    def next_free(self, stem: str, format: str, replaceable: Replaceable) -> tuple[AnyPath, bool]:
        """Return the first of stem, stem-2, stem-3... that is not assigned, and whether the file exists.

        A file that exists counts as free if `replaceable` returns True for it.
        """
        path, number = self.out / f"{stem}.{format}", 1
        while path in self.stems or (self.exists(path) and not replaceable(path)):
            number += 1
            path = self.out / f"{stem}-{number}.{format}"
        self.stems[path] = stem
        return path, self.exists(path)

    def exists(self, path: AnyPath) -> bool:
        """Whether a file has this name; a folder at a URL is listed only once, as each request takes long."""
        if isinstance(path, Path):
            return path.exists()
        if self.listed is None:
            self.listed = set(list_names(str(self.out)))
        return path.name in self.listed

    def save_generated(self, image: Image.Image, path: AnyPath, record: GenerationRecord) -> AnyPath:
        """Save an image with its record to a path of `assign`; return the final path, see `save`."""
        return self.save(image, path, to_metadata(record), lambda path: record.describes(read_record(path)))

    def save(self, image: Image.Image, path: AnyPath, metadata: dict, replaceable: Replaceable) -> AnyPath:
        """Save an image to a path that `next_free` returned; return it, or the next free one.

        Between naming and saving, another run in the same folder may have written this file. So an existing
        file is examined again, and a new one is created exclusively (see `atomic_write`): no run overwrites
        another's images. Object stores cannot create exclusively, so no two runs should share a URL.

        Raises:
            LuminaError: if writing fails.
        """
        while True:
            exists = path.exists()
            if exists and not replaceable(path):
                path, exists = self.next_free(self.stems[path], path.suffix[1:], replaceable)
            try:
                return save_image(image, path, metadata, replace=exists)
            except FileExistsError as error:
                if not path.exists():  # the parent is a file, not a folder
                    raise LuminaError(f"cannot write {path}: {error.strerror}") from error
            except OSError as error:
                raise LuminaError(f"cannot write {path}: {error.strerror or error}") from error


def read_record(path: AnyPath) -> GenerationRecord | None:
    """Return the generation record in an image file's header; None if it has none."""
    try:
        return from_metadata(read_metadata(path))
    except LuminaError:  # not an image, or not one of this package
        return None


def slug(text: str) -> str:
    """Return the letters and digits of `text`, in any script, joined by dashes; at most MAX_SLUG of them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    # three bytes per character keep file names of CJK text within the limits of file systems
    return "-".join(words).encode()[: 3 * MAX_SLUG].decode(errors="ignore")[:MAX_SLUG].strip("-_")

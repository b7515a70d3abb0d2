"""Captions as .txt files next to their images, or in a folder, as trainers such as kohya's read them."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.io.jsonl import get_captions, get_error, is_in_memory

ROWS = "captions.jsonl"  # file of rows in a folder of sidecars


class Sidecars:
    """The .txt files of a run: one caption each, the first requested one that the row has.

    pairs     requested (language, level) pairs, in order
    folder    folder of the files; None writes each file next to its image
    replace   whether to replace existing files with another text
    written   number of new files, and `kept`, of existing ones with another text
    shared    number of images whose file belongs to another image of the same name
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], folder: Path | None, replace: bool):
        self.pairs, self.folder, self.replace = pairs, folder, replace
        self.written = self.kept = self.shared = 0
        self._own: set[int] = set()

    def check(self, row: dict[str, Any]) -> None:
        """Check that the file of a row has a place.

        Raises:
            UsageError: if the image is not a local file and no folder was given.
        """
        if self.folder is None and _local_image(row) is None:
            image = row.get("image")
            name = row.get("key") or "an image" if image is None or is_in_memory(image) else image
            raise UsageError(
                f"--sidecars writes next to image files, but {name} is not a local file; give --out FOLDER"
            )

    def follow(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Write the file of each row, then yield the row."""
        for row in rows:
            self.write(row)
            yield row

    def write(self, row: dict[str, Any], only_missing: bool = False) -> None:
        """Write the file of a row, unless it has none of the captions, or a file with another text exists."""
        captions = {} if get_error(row) else get_captions(row)
        text = next((text for lang, level in self.pairs if (text := captions.get(lang, {}).get(level))), None)
        path = self.path(row)
        if text is None or path is None:
            return
        place, existing = hash(str(path)), self._existing(path)
        if only_missing and existing:
            return
        if place in self._own:
            self.shared += 1
            return
        self._own.add(place)
        old = existing.read_bytes() if existing else None
        new = f"{' '.join(text.split())}\n".encode()
        if old is not None and old.strip() == new.strip():
            return
        if old is not None and not self.replace:
            self.kept += 1
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as aside:
                aside.write_bytes(new)
        self.written += 1

    def _existing(self, path: Path) -> Path | None:
        """Return the caption file that an image has: a new .txt file would hide a .caption file."""
        places = [path, *([path.with_suffix(".caption")] if self.folder is None else [])]
        return next((place for place in places if place.is_file()), None)

    def path(self, row: dict[str, Any]) -> Path | None:
        """Return the path of the file of a row, which is always in the folder."""
        image = _local_image(row)
        if self.folder is None:
            return None if image is None else image.with_suffix(".txt")
        name = PurePosixPath(str(row.get("key") or (image.stem if image else "")))
        parts = [part for part in name.parts if part not in ("/", "..", ".")]
        return self.folder.joinpath(*parts[:-1], f"{parts[-1]}.txt") if parts else None

    def line(self) -> str:
        """Return a one-line summary."""
        words = [f"{self.written} .txt files written"]
        if self.kept:
            words.append(f"{self.kept} existing ones with other text kept (--replace replaces them)")
        if self.shared:
            words.append(f"{self.shared} images share a file with another image of the same name")
        return ", ".join(words)


def _local_image(row: dict[str, Any]) -> Path | None:
    """Return the path of the image file of a row; None if it is remote, in a tar or in memory."""
    image = row.get("image")
    if image is None or is_in_memory(image) or "://" in str(image) or ".tar#" in str(image):
        return None
    return Path(str(image)) if isinstance(image, str | Path) else None

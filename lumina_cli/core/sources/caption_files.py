"""Captions of a folder of images: files next to an image, and tables that name the images of a folder.

Next to cat.jpg: cat.json, cat.txt or cat.caption, or cat.jpg.json, cat.jpg.txt. A JSON file that holds only
metadata leaves the caption to the text file. Tables are metadata.jsonl, metadata.csv or metadata.parquet of a
Hugging Face imagefolder, which name an image "file_name", and meta_cap.json of kohya's tools. The file next
to an image has priority over a table.
"""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.suffixes import SUFFIXES, LeftOut, split_suffix
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.allowed import is_system_file
from lumina_cli.core.io.captions import KEYS, caption_fields, decode_text, with_captions
from lumina_cli.core.io.jsonl import parse_row, parse_rows
from lumina_cli.core.io.row_checks import LongLine
from lumina_cli.core.limits import MAX_ROW
from lumina_cli.core.sources.row_files import CAPTION_KEY, IMAGE_KEYS

SIDECARS = (".json", ".txt", ".caption")
TEXTS = SIDECARS[1:]
TABLE = re.compile(r"(meta(data)?|captions)([_-]\w+)?\.(jsonl|csv|tsv|parquet|json)", re.IGNORECASE)
OTHER_TEXTS = (
    "description",
    "alt_text",
    "alt",
    "title",
    "label",
)  # columns that hold a caption if no other one does


class Sidecars:
    """The caption files of one folder; `names` of the constructor are all files that may be read."""

    def __init__(self, names: Iterable[str]):
        self.files: dict[tuple[str, str], str] = {}
        for name in sorted(names, reverse=True):  # a.txt before a.TXT
            stem, dot, ending = name.rpartition(".")
            if dot and f".{ending.lower()}" in SIDECARS:
                self.files[stem, f".{ending.lower()}"] = name
        self.names = set(self.files.values())
        self.hidden: set[str] = set()  # by another file of the same image
        self.unused = {name for name in self.names if not TABLE.fullmatch(name) and not name.startswith(".")}

    def find(self, name: str) -> list[str]:
        """Return the names of the caption files of an image, the JSON file first."""
        stems = (*dict.fromkeys((split_suffix(name)[0], os.path.splitext(name)[0])), name)
        found = []
        for suffixes in ((".json",), TEXTS):
            pairs = ((stem, suffix) for suffix in suffixes for stem in stems)
            names = [self.files[pair] for pair in pairs if pair in self.files]
            found += names[:1]
            self.hidden.update(names[1:])
        self.unused.difference_update(found, self.hidden)
        return found


def read_caption_files(places: list[str], lines: str = "one") -> dict:
    """Return the fields of a row in the caption files of an image, as `Sidecars.find` orders them.

    lines  one of LINES: what the lines of a text file are

    Raises:
        LuminaError: if a file is not text, or a JSON file does not hold an object.
    """
    row: dict[str, Any] = {}
    for place in places:
        if "captions" in row:
            break
        if not filesystem.is_url(place) and is_system_file(place):
            raise LuminaError(f"{place} is a file of the system, not a caption file")
        data = filesystem.read_part(place, 0, MAX_ROW + 1)
        if len(data) > MAX_ROW:
            raise LuminaError(f"{place} is {LongLine.reason}")
        text = decode_text(data, place)
        if place.lower().endswith(TEXTS):
            row |= caption_fields(text, lines)
        else:
            row |= _parse_json(text, place)
    return row


def _parse_json(text: str, place: str) -> dict:
    text = text.strip()
    if text.startswith("["):  # a list of captions
        row = caption_fields(parse_row(f'{{"captions": {text}}}', place)["captions"])
        if not row:
            raise LuminaError(f"{place}: expected a JSON object or a list of captions")
        return row
    row = with_captions(parse_row(text, place))
    return row if row.get("captions") else {name: value for name, value in row.items() if name != "captions"}


class CaptionTables:
    """The tables of a folder and its subfolders, by the path of the image.

    text      the column of the caption; "" chooses it by its name
    left_out  receives tables and rows that cannot be used
    """

    def __init__(self, text: str, left_out: LeftOut):
        self.text, self.left_out = text, left_out
        self.rows: dict[str, dict] = {}
        self.unused: set[int] = set()

    def load(self, folder: str, names: Iterable[str]) -> None:
        """Read the tables among the files of a folder."""
        names = set(names)
        for name in sorted(filter(TABLE.fullmatch, names)):
            stem = split_suffix(name)[0]
            if not any(stem + suffix in names for suffix in SUFFIXES):  # else it is the file of an image
                self._load(folder, filesystem.join(folder, name))

    def _load(self, folder: str, place: str) -> None:
        name = filesystem.basename(place)
        try:
            with filesystem.open_file(place) as file:
                items = [row for _, row in parse_rows(file, place)]
        except LuminaError:
            self.left_out.add_other(f"invalid {name}")
            return
        rows = [row for row in items if isinstance(row, dict)]
        if bad := len(items) - len(rows):
            self.left_out.add_other(f"invalid row of {name}", bad)
        named = [(key, row) for row in rows if (key := _image_key(row))]
        if not named:
            self.left_out.add_other(f"{name} without file names")
            return
        columns = _caption_columns(named)
        if self.text:
            if not any(self.text in row for _, row in named):
                raise UsageError(f"{place} has no column {self.text!r}, only {', '.join(named[0][1])}")
            columns = (self.text,)
        for key, row in named:
            fields = {name: value for name, value in row.items() if name != key and value is not None}
            fields = _with_kohya_tags(with_captions(fields, columns)) if columns else fields
            self.unused.add(id(fields))
            for path in _paths(folder, row[key]):
                self.rows.setdefault(path, fields)

    def find(self, place: str) -> dict:
        """Return the fields of a row for an image; {} if no table names it."""
        if not self.rows:
            return {}
        path = _normalize(place)
        fields = self.rows.get(path)
        if fields is None:
            fields = self.rows.get(os.path.splitext(path)[0], {})
        self.unused.discard(id(fields))
        return fields

    def count_unused(self) -> None:
        """Count the rows of tables that name no image of the folder."""
        for _ in self.unused:
            self.left_out.add_other("row of a table without its image")


def _image_key(row: dict) -> str | None:
    names = ("image", *IMAGE_KEYS, *(name for name in row if str(name).endswith("_file_name")))
    return next((name for name in names if isinstance(row.get(name), str) and row[name].strip()), None)


def _caption_columns(named: list[tuple[str, dict]]) -> tuple[str, ...]:
    """Return the columns that may hold the caption, in order of priority."""
    columns = list(dict.fromkeys(name for key, row in named for name in row if name != key))
    texts = [name for name in columns if any(_is_text(row.get(name)) for _, row in named)]
    found = [name for name in KEYS if name in texts]
    found += [name for name in texts if CAPTION_KEY.fullmatch(name) and name not in found]
    found += [name for name in OTHER_TEXTS if name in texts]
    return tuple(found or (texts if len(texts) == 1 else ()))


def _is_text(value: object) -> bool:
    return bool(caption_fields(value))


def _with_kohya_tags(row: dict) -> dict:
    """Return a row of meta_cap.json with its "tags" as a caption."""
    tags = row.get("tags")
    if isinstance(tags, list | tuple) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    captions = row.get("captions") or {}
    if not isinstance(tags, str) or not tags.strip() or not isinstance(captions, dict):
        return row
    return row | {"captions": {**captions, "en": {"tags": tags.strip()} | captions.get("en", {})}}


def _paths(folder: str, name: str) -> list[str]:
    """Return the paths of the image `name` of a table in `folder`; of a path of another machine, its name."""
    path = name.replace("\\", "/")
    if os.path.isabs(path) or re.match(r"[A-Za-z]:/", path):
        return [_normalize(path), _normalize(filesystem.join(folder, PurePosixPath(path).name))]
    return [_normalize(filesystem.join(folder, path))]


def _normalize(place: str) -> str:
    return place if filesystem.is_url(place) else os.path.normpath(place)

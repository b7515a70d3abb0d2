"""Files of rows as a source: their formats, archives that are refused, and where images are searched."""

import os
import re
from collections.abc import Iterator
from typing import IO, Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.suffixes import OTHER_IMAGES, READ, START, sniff
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import KEYS, caption_fields, with_captions
from lumina_cli.core.io.jsonl import check_row, get_error, parse_rows
from lumina_cli.core.io.tables import Item
from lumina_cli.core.shards.tar import RejectedImage

IMAGE_KEYS = ("file_name", "image_path", "image_file", "img_path", "filepath", "filename", "path")
CHATS = ("conversations", "messages", "conversation", "texts")  # keys of rows with the turns of a chat
_ANSWERS = ("gpt", "assistant", "model", "chatgpt", "bard", "bing")
_IMAGE_MARK = re.compile(r"<image>\s*")
CAPTION_KEY = re.compile(r"(.*[_ -])?captions?([_ -]?\d+)?", re.IGNORECASE)  # of rows without a key in KEYS
ARCHIVES = {
    b"PK\x03\x04": ("a ZIP archive", "unpack it and name the folder: `unzip {place} -d FOLDER`"),
    b"PK\x05\x06": ("a ZIP archive", "unpack it and name the folder: `unzip {place} -d FOLDER`"),
    b"\x1f\x8b": ("compressed with gzip", "decompress it: `gunzip -k {place}`"),
    b"BZh": ("compressed with bzip2", "decompress it: `bunzip2 -k {place}`"),
    b"\xfd7zXZ\0": ("compressed with xz", "decompress it: `unxz -k {place}`"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "decompress it: `unzstd {place}`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it and name the folder"),
    b"Rar!": ("a RAR archive", "unpack it and name the folder"),
    b"ARROW1": ("an Arrow file", "write its table as Parquet (.parquet)"),
    b"\x89HDF": ("an HDF5 file", "write its rows as .jsonl"),
    b"SQLite format 3": ("an SQLite database", "write its rows as .jsonl"),
}


def read_row_file(
    source: str | IO,
    lenient: bool = False,
    need: str | None = "image",
    settings: dict[str, Any] | None = None,
) -> Iterator[dict]:
    """Yield the rows of a file, a URL or a stream, with the images and captions that they name.

    lenient   whether an invalid row becomes a row whose "image" is a RejectedImage
    need      the key that each row must have, None for none
    settings  LOCAL (sources/settings.py): the keys of the image and of the caption

    Raises:
        LuminaError: if the file is an archive or is not text, or, without `lenient`, if a row is invalid.
    """
    folder = filesystem.parent(source) if isinstance(source, str) else "."
    finder = _ImageFinder(folder, source if isinstance(source, str) else "")
    settings = settings or {}
    for where, row in _items(source, need):
        try:
            if isinstance(row, LuminaError):
                raise row
            row = finder.locate(_name_fields(row, settings))
            if need and not get_error(row):
                check_row(row, need, where)
            yield row
        except LuminaError as error:
            if not lenient:
                raise
            yield {"key": "-".join(where.split(" ")[-2:]), "image": RejectedImage("", "bad_row", str(error))}


def _items(source: str | IO, need: str | None) -> Iterator[Item]:
    if not isinstance(source, str):
        yield from parse_rows(source, "", need, check=False)
        return
    with filesystem.open_file(source) as file:
        start = file.read(START)
        file.seek(0)
        refuse_archive(source, start)
        yield from parse_rows(file, source, need, check=False)


def refuse_archive(place: str, start: bytes) -> None:
    """Check that a file of rows, which begins with `start`, is not an archive or another binary file.

    Raises:
        LuminaError: if it is one; the message contains the remedy.
    """
    if place.lower().endswith((".xlsx", ".xls", ".ods")):
        raise LuminaError(f"{place} is a spreadsheet, which is not read; save it as .csv")
    for magic, (kind, remedy) in ARCHIVES.items():
        if start.startswith(magic):
            raise LuminaError(f"{place} is {kind}, which is not read; {remedy.format(place=place)}")
    if b"ustar" in start[257:265]:
        raise LuminaError(f"{place} is a tar; rename it to {place}.tar to read it as a shard")
    kind = sniff(start)
    if kind not in (None, *READ) or OTHER_IMAGES.fullmatch(os.path.splitext(place)[1].lower()):
        what = f"is {kind}" if kind else "has the suffix of an image format"
        raise LuminaError(f"{place} {what}, which is not read; convert it to JPEG or PNG")
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")) and not start.startswith(b"PAR1"):
        raise LuminaError(f"{place} is binary; a source is a folder, a file of rows, shards or an image")


def _name_fields(row: dict, settings: dict[str, Any]) -> dict:
    """Return a row whose image is "image", also if the file uses another key; `settings` are as in LOCAL."""
    name = settings.get("image") or ""
    if name and name not in row:
        raise LuminaError(f"no column {name!r}, only {', '.join(map(str, row)) or 'nothing'}")
    if not name and row.get("image") is None:
        name = next((each for each in IMAGE_KEYS if isinstance(row.get(each), str)), "")
    if name and name != "image":
        row = {each: value for each, value in row.items() if each != name} | {"image": row[name]}
    images = row.get("images")
    if "image" not in row and isinstance(images, list) and images:
        if isinstance(images[0], dict) and "file_name" in images[0]:
            raise LuminaError("a whole COCO file in one row; name it as a source, with the suffix .json")
        if len(images) > 1:
            raise LuminaError(f"'images' has {len(images)} items, but a row has one image")
        row = {each: value for each, value in row.items() if each != "images"} | {"image": images[0]}
    image = row.get("image")
    if isinstance(image, dict) and image.keys() == {"bytes", "path"}:  # as data sets of the hub store it
        row = row | {"image": image.get("bytes") or image.get("path")}
        if image.get("path") and "key" not in row:
            row["key"] = os.path.splitext(os.path.basename(image["path"]))[0]
    if text := settings.get("text"):
        row = {each: value for each, value in row.items() if each != "captions"}
        return row | caption_fields(first_answer(row.get(text)) or row.get(text))
    row = with_captions(row, caption_keys(row))
    if row.get("captions"):
        return row
    return row | caption_fields(next(filter(None, (first_answer(row.get(each)) for each in CHATS)), None))


def first_answer(turns: object) -> str | None:
    """Return the first answer of the model in a chat, as LLaVA, ShareGPT4V and others store it.

    A turn is {"from": "gpt", "value": text}, {"role": "assistant", "content": text or parts}, or
    {"user": text, "assistant": text}.
    """
    for turn in turns if isinstance(turns, list | tuple) else ():
        if not isinstance(turn, dict):
            return None
        answer = turn.get("assistant")
        if str(turn.get("from") or turn.get("role")).lower() in _ANSWERS:
            answer = turn.get("value", turn.get("content", turn.get("text")))
        if isinstance(answer, list):
            answer = "".join(str(part.get("text") or "") for part in answer if isinstance(part, dict))
        if isinstance(answer, str) and (answer := _IMAGE_MARK.sub("", answer).strip()):
            return answer
    return None


def caption_keys(row: dict) -> tuple[str, ...]:
    """Return the keys of a row that may hold a caption, in order of priority."""
    others = (each for each in row if isinstance(each, str) and CAPTION_KEY.fullmatch(each))
    return (*KEYS, *others)


class _ImageFinder:
    """Finds the images of rows: relative to the folder of the file, else to the working folder."""

    def __init__(self, folder: str, place: str = ""):
        self.folder, self.remote = folder, filesystem.is_url(folder)
        # annotations/captions_val2017.json of COCO has its images in val2017/
        split = os.path.splitext(os.path.basename(place))[0].rpartition("_")[2]
        parents = (folder, filesystem.join(folder, ".."))
        self.splits = [
            filesystem.join(parent, name) for parent in parents for name in (split, "images") if name
        ]

    def locate(self, row: dict) -> dict:
        """Return a row whose "image" is a path that exists, or a RejectedImage that names the places."""
        image = row.get("image")
        if not isinstance(image, str) or not image.strip() or filesystem.is_url(image) or get_error(row):
            return row
        if ".tar#" in image and _exists(image):
            return row
        if filesystem.get_scheme(image) == "file":
            if "::" in image:  # a chain, which `screen_rows` rejects
                return row
            image = filesystem.to_text(image)
        for path in dict.fromkeys((image, image.replace("\\", "/"))):
            beside = filesystem.join(self.folder, path)
            if not os.path.isabs(path) and (self.remote or _exists(beside)):
                return row | {"image": beside}
            if _exists(path):
                return row | {"image": path}
            for split in self.splits if "image_id" in row and not os.path.isabs(path) else ():
                if _exists(filesystem.join(split, path)):
                    return row | {"image": os.path.normpath(filesystem.join(split, path))}
        reason = "no such image"
        if not os.path.isabs(image) and self.folder != ".":
            reason += f", neither in {self.folder} nor in the working folder"
        return row | {"image": RejectedImage(image, "missing", reason)}


def _exists(path: str) -> bool:
    """Whether an image, or the tar that contains it, exists."""
    tar, mark, _ = path.rpartition(".tar#")
    try:
        return os.path.lexists(path) or bool(mark and os.path.lexists(f"{tar}.tar"))
    except ValueError:  # a path with a NUL character
        return False

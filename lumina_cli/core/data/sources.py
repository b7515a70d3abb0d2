"""SOURCE: where rows with pictures come from, told by one word.

    photos/                  a folder of pictures, with captions beside them (cat.jpg: cat.txt or cat.json)
    rows.jsonl, -            rows from a file or stdin
    shards/, 000000.tar      shards
    nano:2000?seed=7         rendered scenes; also size= in pixels, held_out=1 for what is kept from training,
                             truth=1 for the true depth and masks beside each picture
    hf:NAME?split=train      a data set of the hub; also config=, image=, text= (its columns) and limit=

A row's "image" is a path, a picture in memory, the bytes of a picture file, or a TarImage; `open_row_image`
opens any. With truth=1 a nano row also has "depth" and "masks", PNG files of the picture's size: depth is
16-bit grey, thousandths of a world unit along the ray; masks is 8-bit grey, 0 where there is no thing and
i + 1 on things[i] of "scene". Shards keep them as {key}.depth.png and {key}.masks.png; `decode_depth` and
`decode_masks` of formats/images.py read them.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.formats.images import SUFFIXES, open_image
from lumina_cli.core.formats.rows import check_row, parse_row, read_rows
from lumina_cli.core.formats.shards import read_image_bytes, read_shards
from lumina_cli.core.formats.tars import TarImage
from lumina_cli.core.registry import did_you_mean

NANO = {"seed": 0, "size": 128, "held_out": 0, "truth": 0}
HUB = {"split": "train", "config": "", "image": "image", "text": "text", "limit": 0}
LANGUAGE = "en"  # of a caption that does not say
LEVEL_WORDS = {"short": 12, "medium": 30}  # a caption that does not say its level is put by its length


def read_source(source: str | Path, workers: int = 0) -> Iterator[dict]:
    """Return the rows of a SOURCE, in an order that does not change.

    `workers` processes render nano scenes; with any, "image" is the bytes of a PNG in place of a picture.
    Raises LuminaError for a source that is missing or empty, UsageError for one that means nothing.
    """
    word = str(source)
    kind, _, rest = word.partition(":")
    path = Path(word)
    if kind == "nano" and not path.exists():
        return _nano(rest, word, workers)
    if kind == "hf" and not path.exists():
        return _hub(rest, word)
    if word == "-":
        return _images_of(read_rows(getattr(sys.stdin, "buffer", sys.stdin), key="image"), Path())
    if path.is_dir():
        return read_shards(path) if any(path.glob("*.tar")) else read_folder(path)
    if not path.is_file():
        raise LuminaError(
            f"{word}: no such source; give a folder, a file of rows, -, shards, nano:N or hf:NAME"
        )
    if path.suffix == ".tar":
        return read_shards(path)
    if path.suffix.lower() in SUFFIXES:
        return iter([_picture_row(path, path.parent)])
    return _images_of(read_rows(path, key="image"), path.parent)


def open_row_image(row: dict) -> Image.Image:
    """Return the picture of a row as 8-bit RGB; LuminaError where there is none or it cannot be read."""
    check_row(row, "image", "the row")
    image = row["image"]
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(image, bytes):
        return open_image(image, name=str(row.get("key") or "picture"))
    if not isinstance(image, str | Path | TarImage):
        raise LuminaError(f"the row's 'image' is no path but {type(image).__name__}")
    return open_image(read_image_bytes(image), name=str(image))


def read_folder(folder: Path) -> Iterator[dict]:
    """Yield a row per picture below a folder, sorted by path, with the captions that lie beside it."""
    found = False
    for path in _walk(folder):
        found = True
        yield _picture_row(path, folder)
    if not found:
        raise LuminaError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place) / name


def _picture_row(path: Path, folder: Path) -> dict:
    row = {"key": path.relative_to(folder).with_suffix("").as_posix(), "image": str(path)}
    beside = path.with_suffix(".json")
    if beside.is_file():
        found = parse_row(_text(beside), str(beside))
        return row | _with_captions(found) | {"image": row["image"]}
    beside = path.with_suffix(".txt")
    text = _text(beside).strip() if beside.is_file() else ""
    return row | _as_captions(text)


def _as_captions(text: object) -> dict:
    """Return {"captions": ...} of one caption as other tools write it; empty where it is no text."""
    if not isinstance(text, str) or not text.strip():
        return {}
    words = len(text.split())
    level = next((level for level, most in LEVEL_WORDS.items() if words <= most), "detailed")
    return {"captions": {LANGUAGE: {level: text.strip()}}}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LuminaError(f"{path} is not UTF-8 text") from error


def _with_captions(row: dict) -> dict:
    """Move a caption under one of the names that other tools use to where ours are."""
    for name in ("caption", "text", "prompt"):
        if "captions" not in row and (captions := _as_captions(row.get(name))):
            return row | captions
    return row


def _images_of(rows: Iterable[dict], folder: Path) -> Iterator[dict]:
    """A relative path of a picture is looked for beside the file of rows first, then from here."""
    for row in rows:
        image = row["image"]
        if isinstance(image, str) and not Path(image).is_absolute() and (folder / image).exists():
            row = row | {"image": str(folder / image)}
        yield _with_captions(row)


def _settings(words: str, known: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the settings after "?", as the types of their defaults."""
    found = dict(known)
    for name, value in parse_qsl(words, keep_blank_values=True):
        if name not in known:
            hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
            raise UsageError(f"{source}: no setting {name!r}{hint}")
        found[name] = _whole(value, f"{source}: {name}") if isinstance(known[name], int) else value
    return found


def _whole(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is not a whole number") from None


def _nano(rest: str, source: str, workers: int) -> Iterator[dict]:
    from lumina_cli.core.data.scenes import nano_rows

    count, _, words = rest.partition("?")
    settings = _settings(words, NANO, source)
    number = _whole(count, f"{source}: the number of scenes")
    if number < 1:
        raise UsageError(f"{source}: at least 1 scene")
    held_out, truth = bool(settings["held_out"]), bool(settings["truth"])
    return nano_rows(number, settings["seed"], settings["size"], held_out, workers, truth)


def _hub(rest: str, source: str) -> Iterator[dict]:
    name, _, words = rest.partition("?")
    settings = _settings(words, HUB, source)
    if not name:
        raise UsageError(f"{source}: hf: needs the name of a data set, as hf:OWNER/NAME")
    return _hub_rows(name, settings)


def _hub_rows(name: str, settings: dict) -> Iterator[dict]:
    import datasets

    try:
        rows = datasets.load_dataset(
            name, settings["config"] or None, split=settings["split"], streaming=True
        )
        columns = rows.column_names or []
        if settings["image"] not in columns:
            raise UsageError(
                f"hf:{name} has no column {settings['image']!r}; image= names one of {', '.join(columns)}"
            )
        rows = rows.cast_column(settings["image"], datasets.Image(decode=False))
        rows = rows.take(settings["limit"]) if settings["limit"] else rows
        for number, row in enumerate(rows):
            yield _hub_row(row, f"{name.replace('/', '_')}-{number:08d}", settings)
    except LuminaError:
        raise
    except Exception as error:  # the hub's client raises its transport's errors, and data sets their own
        raise LuminaError(
            f"hf:{name} cannot be read ({_reason(error)}); is the name right and the hub in reach?"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:199] + "…"


def _hub_row(row: dict, key: str, settings: dict) -> dict:
    image, text = row.pop(settings["image"]), row.pop(settings["text"], None)
    row = {"key": key, **row, "image": image.get("bytes") or image.get("path")}
    return row | _as_captions(text)

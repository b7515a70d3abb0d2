"""SOURCE: one argument that specifies where rows with images come from.

    photos/                  a folder of images with caption files (cat.jpg: cat.txt or cat.json)
    rows.jsonl, -            rows from a file or stdin
    shards/, 000000.tar      shards; "?overlay=NAME" after it joins overlays (shards/overlays/reader.py)
    nano:2000?seed=7         rendered scenes; also size= in pixels, held_out=1 for scenes reserved for
                             evaluation, truth=1 for ground-truth depth and masks
    hf:NAME?split=train      a data set of the hub; also config=, image=, text= (its columns) and limit=

Folders, files and shards may be URLs (s3://bucket/photos, gs://..., memory://...). A row's "image" is a path,
a URL, an image in memory, the bytes of an image file, or a TarImage; `open_row_image` opens each. With
truth=1 a nano row also has "depth" and "masks", PNG files of the size of the image: depth is 16-bit grey, in
thousandths of a world unit along the ray; masks is 8-bit grey, 0 for the background and i + 1 on things[i] of
"scene". Shards contain them as {key}.depth.png and {key}.masks.png; `decode_depth` and
`decode_masks` of images/io.py read them.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import SUFFIXES, open_image
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import caption_fields, check_row, get_error, parse_row, read_rows, with_captions
from lumina_cli.core.io.row_checks import LongLine, bounded_lines
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.image_ref import MissingImage, image_ref
from lumina_cli.core.shards.overlays.reader import split_source
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.selection import is_selection, read_selection
from lumina_cli.core.shards.tar import RejectedImage
from lumina_cli.core.sources.image_folder import image_row, read_folder
from lumina_cli.core.sources.screen import screen_rows

NANO = {"seed": 0, "size": 128, "held_out": 0, "truth": 0}
REJECTS = ".rejects.jsonl"  # suffix after the name of a file of rows
HUB = {"split": "train", "config": "", "image": "image", "text": "text", "limit": 0}


def read_source(
    source: str | Path,
    workers: int = 0,
    lenient: bool = False,
    links: bool = False,
    need: str | None = "image",
) -> Iterator[dict]:
    """Return the rows of a SOURCE, in a fixed order.

    workers  processes that render nano scenes; with any, "image" is the bytes of a PNG instead of an image
    lenient  whether invalid rows and files become rows whose "image" is a RejectedImage
    links    see `read_folder`
    need     the key that rows of a file must have, None for none

    Raises:
        LuminaError: if the source is missing, empty or invalid.
        UsageError: if a setting of the source is unknown or invalid.
    """
    word = str(source)
    kind, _, rest = word.partition(":")
    if kind in ("nano", "hf") and not filesystem.is_url(word) and not Path(word).exists():
        if kind == "nano":
            return _nano(rest, word, workers)
        return screen_rows(_hub(rest, word), f"hf://datasets/{rest.partition('?')[0]}")
    if word == "-":
        rows = _rows_of(getattr(sys.stdin, "buffer", sys.stdin), lenient, need)
        return screen_rows(_images_of(rows, "."))
    place = split_source(filesystem.to_text(source))[0]
    folder = place if filesystem.is_dir(place) else filesystem.parent(place)
    return screen_rows(_stored_rows(source, place, lenient, links, need), folder)


def _stored_rows(
    source: str | Path, place: str, lenient: bool, links: bool, need: str | None
) -> Iterator[dict]:
    """Return the rows of a folder or file at `place`, without its overlays in `source`."""
    word = filesystem.to_text(source)
    if filesystem.is_dir(place):
        if is_selection(word):
            return map(with_captions, read_selection(word))
        if any(name.endswith(".tar") for name in filesystem.list_names(place)):
            return map(with_captions, read_shards(word, lenient))
        return read_folder(place, lenient, links)
    if not filesystem.is_file(place):
        raise LuminaError(
            f"{word}: no such source; give a folder, a file of rows, -, shards, nano:N or hf:NAME"
        )
    if place.endswith(".tar"):
        return map(with_captions, read_shards(word, lenient))
    if place.lower().endswith(SUFFIXES):
        return iter(
            [
                {"key": Path(place).stem, "image": place}
                if filesystem.is_url(place)
                else image_row(Path(place))
            ]
        )
    return _images_of(_rows_of(place, lenient, need), filesystem.parent(place))


def read_rejects(source: str) -> list[dict]:
    """Return the rows that `lumina caption --out` rejected of a file of rows; [] for any other SOURCE.

    They are stored next to it in FILE.rejects.jsonl, each with key, image and reason.
    """
    place = filesystem.to_text(source)
    beside = place + REJECTS
    if source == "-" or not filesystem.is_file(place) or not filesystem.is_file(beside):
        return []
    text = filesystem.read_file(beside).decode(errors="replace")
    lines = text.split("\n")[:-1]  # without a last line that is not complete yet
    rows = (parse_row(line, f"{beside} line {number}") for number, line in enumerate(lines, 1) if line)
    return list(rows)


def open_row_image(row: dict) -> Image.Image:
    """Return the image of a row as 8-bit RGB.

    Raises:
        LuminaError: if the row has no image, or the image is missing, truncated or invalid.
    """
    check_row(row, "image", "the row")
    image = row["image"]
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    ref = image_ref(image)
    if isinstance(ref, MissingImage):
        raise LuminaError(f"the row's 'image' is not a path but {type(image).__name__}")
    return open_image(ref.read(), ref.origin or str(row.get("key") or "image"), whole=True)


def _rows_of(source: str | IO, lenient: bool, need: str | None = "image") -> Iterator[dict]:
    """Yield the rows of a file, a URL or a stream; with `lenient`, an invalid line is a rejected row."""
    if not isinstance(source, str):
        yield from _lenient_rows(source, "") if lenient else read_rows(source, key=need)
    elif source.endswith(".csv") or not (lenient or filesystem.is_url(source)):
        yield from read_rows(source, key=need)
    else:
        with filesystem.open_file(source) as file:
            yield from _lenient_rows(file, f"{source} ") if lenient else read_rows(file, key=need)


def _lenient_rows(lines: Iterable[bytes | str], place: str) -> Iterator[dict]:
    """Yield a row per line; the "image" of an invalid line is a RejectedImage. `place` is for messages."""
    for number, line in enumerate(bounded_lines(lines), start=1):
        where = f"{place}line {number}"
        try:
            if isinstance(line, LongLine):
                raise LuminaError(f"{where} is {line.reason}")
            text = (line.decode("utf-8-sig") if isinstance(line, bytes) else line).strip()
            if text:
                row = parse_row(text, where, "image", plain=not place)
                if not get_error(row):
                    check_row(row, "image", where)
                yield row
        except (LuminaError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, LuminaError) else f"{where} is not UTF-8 text"
            yield {"key": f"line-{number}", "image": RejectedImage("", "bad_row", reason)}


def _images_of(rows: Iterable[dict], folder: str) -> Iterator[dict]:
    """Resolve relative paths of images: from the folder of the file of rows, else from the working folder."""
    remote = filesystem.is_url(folder)
    for row in rows:
        image = row.get("image")
        if isinstance(image, str) and not os.path.isabs(image) and not filesystem.is_url(image):
            beside = filesystem.join(folder, image)
            if remote or os.path.exists(beside):
                row = row | {"image": beside}
        yield with_captions(row)


def _settings(words: str, known: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the settings after "?", converted to the types of the defaults in `known`.

    Raises:
        UsageError: if a setting is unknown or not a whole number.
    """
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
    from lumina_cli.core.sources.nano import nano_rows

    count, _, words = rest.partition("?")
    settings = _settings(words, NANO, source)
    number = _whole(count, f"{source}: the number of scenes")
    if number < 1:
        raise UsageError(f"{source}: the number of scenes must be at least 1")
    held_out, truth = bool(settings["held_out"]), bool(settings["truth"])
    return nano_rows(number, settings["seed"], settings["size"], held_out, workers, truth)


def _hub(rest: str, source: str) -> Iterator[dict]:
    name, _, words = rest.partition("?")
    settings = _settings(words, HUB, source)
    if not name:
        raise UsageError(f"{source}: hf: requires the name of a data set, such as hf:OWNER/NAME")
    return _hub_rows(name, settings)


def _hub_rows(name: str, settings: dict) -> Iterator[dict]:
    """Yield the rows of a data set of the hub, streamed.

    Raises:
        UsageError: if the column of images does not exist.
        LuminaError: if the data set cannot be read.
    """
    import datasets

    try:
        rows = datasets.load_dataset(
            name, settings["config"] or None, split=settings["split"], streaming=True
        )
        columns = rows.column_names or []
        if settings["image"] not in columns:
            raise UsageError(
                f"hf:{name} has no column {settings['image']!r}; set image= to one of {', '.join(columns)}"
            )
        rows = rows.cast_column(settings["image"], datasets.Image(decode=False))
        rows = rows.take(settings["limit"]) if settings["limit"] else rows
        for number, row in enumerate(rows):
            yield _hub_row(row, f"{name.replace('/', '_')}-{number:08d}", settings)
    except LuminaError:
        raise
    except Exception as error:  # hub client, transport and data sets raise exceptions of their own
        raise LuminaError(
            f"hf:{name} cannot be read ({_reason(error)}); check the name and the connection to the hub"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:199] + "…"


def _hub_row(row: dict, key: str, settings: dict) -> dict:
    image, text = row.pop(settings["image"]), row.pop(settings["text"], None)
    row = {"key": key, **row, "image": image.get("bytes") or image.get("path")}
    return row | caption_fields(text)

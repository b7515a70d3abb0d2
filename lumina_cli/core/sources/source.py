"""SOURCE: one argument that specifies where rows with images come from.

    photos/                  a folder of images with captions (sources/caption_files.py); also lines=, text=
    rows.jsonl, -            rows from a file (also .csv, .tsv, .parquet, .json) or stdin; also image=, text=
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import open_image
from lumina_cli.core.images.suffixes import READ, START, LeftOut, is_image, sniff, split_suffix
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import caption_fields, with_captions
from lumina_cli.core.io.jsonl import check_row, parse_row
from lumina_cli.core.shards.image_ref import MissingImage, image_ref
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.selection import is_selection, read_selection
from lumina_cli.core.sources.image_folder import image_row, read_folder
from lumina_cli.core.sources.row_files import caption_keys, read_row_file
from lumina_cli.core.sources.screen import screen_rows
from lumina_cli.core.sources.settings import HUB, NANO, parse_settings, split_place, to_whole

MOST_SCENES = 10**9
SIZES = (8, 2048)  # pixels of a scene
REJECTS = ".rejects.jsonl"  # suffix after the name of a file of rows


def read_source(
    source: str | Path,
    workers: int = 0,
    lenient: bool = False,
    links: bool = False,
    need: str | None = "image",
    notify: Callable[[str], None] = lambda line: None,
    left_out: LeftOut | None = None,
    lines: str | None = None,
) -> Iterator[dict]:
    """Return the rows of a SOURCE, in a fixed order.

    workers   processes that render nano scenes; with any, "image" is the bytes of a PNG instead of an image
    lenient   whether invalid rows and files become rows whose "image" is a RejectedImage
    links     see `read_folder`
    need      the key that rows of a file must have, None for none
    notify    receives a message about files that do not become rows, after the last row
    left_out  counts these files
    lines     how the lines of a caption file of a folder are read (LINES of io/captions.py)

    Raises:
        LuminaError: if the source is missing, empty or invalid.
        UsageError: if a setting of the source is unknown or invalid.
    """
    word = str(source)
    kind, _, rest = word.partition(":")
    if kind in ("nano", "hf") and not filesystem.is_url(word) and not os.path.exists(word):
        if kind == "nano":
            return _nano(rest, word, workers)
        return screen_rows(_hub(rest, word), f"hf://datasets/{rest.partition('?')[0]}")
    if word == "-":
        return screen_rows(read_row_file(getattr(sys.stdin, "buffer", sys.stdin), lenient, need))
    place, settings = split_place(word, lines)
    folder = place if filesystem.is_dir(place) else filesystem.parent(place)
    options = _Options(lenient, links, need, settings, LeftOut() if left_out is None else left_out)
    rows = _stored_rows(filesystem.to_text(word), place, options)
    return screen_rows(_with_note(rows, place, options.left_out, notify), folder)


@dataclass(frozen=True)
class _Options:
    """Arguments of `read_source`, and the settings of the source (LOCAL of sources/settings.py)."""

    lenient: bool
    links: bool
    need: str | None
    settings: dict[str, Any]
    left_out: LeftOut


def _stored_rows(word: str, place: str, options: _Options) -> Iterator[dict]:
    """Return the rows of the SOURCE `word`, a folder or file at `place`."""
    lenient, left_out = options.lenient, options.left_out
    if filesystem.is_dir(place):
        if is_selection(word):
            return map(with_captions, read_selection(word))
        names = filesystem.list_names(place)
        if any(name.endswith(".tar") for name in names):
            for name in filter(is_image, names):
                left_out.add_image(f"{split_suffix(name)[1]} next to shards")
            return map(with_captions, read_shards(word, lenient, left_out))
        return read_folder(place, lenient, options.links, options.settings, left_out)
    if not filesystem.is_file(place):
        raise LuminaError(
            f"{word}: no such source; give a folder, a file of rows, -, shards, nano:N or hf:NAME"
        )
    if place.endswith(".tar"):
        return map(with_captions, read_shards(word, lenient, left_out))
    if is_image(place) or sniff(filesystem.read_part(place, 0, START)) in READ:
        remote = filesystem.is_url(place)
        return iter(
            [
                {"key": Path(place).stem, "image": place}
                if remote
                else image_row(Path(place), options.settings["lines"])
            ]
        )
    return read_row_file(place, lenient, options.need, options.settings)


def _with_note(
    rows: Iterator[dict], place: str, left_out: LeftOut, notify: Callable[[str], None]
) -> Iterator[dict]:
    """Pass rows on; send a message about what was left out after the last one."""
    yield from rows
    if left_out:
        notify(f"{place}: not read: {left_out}")


def read_rejects(source: str) -> list[dict]:
    """Return the rows that `lumina caption --out` rejected of a file of rows; [] for any other SOURCE.

    They are stored next to it in FILE.rejects.jsonl, each with key, image and reason.
    """
    place = split_place(source)[0] if source != "-" else source
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


def read_deferred(source: str) -> Iterator[dict]:
    """Return the rows of a nano: source with images that workers render (`DeferredImage`).

    Raises:
        UsageError: if a setting of the source is unknown or invalid.
    """
    return _nano(source.partition(":")[2], source, 0, deferred=True)


def _nano(rest: str, source: str, workers: int, deferred: bool = False) -> Iterator[dict]:
    from lumina_cli.core.sources.nano import deferred_rows, nano_rows

    count, _, words = rest.partition("?")
    settings = parse_settings(words, NANO, source)
    number = to_whole(count, f"{source}: the number of scenes")
    if number < 1:
        raise UsageError(f"{source}: the number of scenes must be at least 1")
    if number > MOST_SCENES:
        raise UsageError(f"{source}: the number of scenes must be at most {MOST_SCENES:,}")
    if not SIZES[0] <= settings["size"] <= SIZES[1]:
        raise UsageError(f"{source}: size must be from {SIZES[0]} to {SIZES[1]} pixels")
    held_out, truth = bool(settings["held_out"]), bool(settings["truth"])
    if deferred:
        return deferred_rows(number, settings["seed"], settings["size"], held_out, truth)
    return nano_rows(number, settings["seed"], settings["size"], held_out, workers, truth)


def _hub(rest: str, source: str) -> Iterator[dict]:
    name, _, words = rest.partition("?")
    settings = parse_settings(words, HUB, source)
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
    row = {"key": key, **row, "image": image.get("bytes") or image.get("path")} | caption_fields(text)
    return with_captions(row, caption_keys(row))

"""Tables as rows: CSV, TSV, Parquet and JSON files. Each item is a row or the error of that row.

A CSV or TSV file names the keys of its rows in its first line. Its values are text; an empty cell is dropped.
In a TSV file quotes are text, unless they enclose a whole cell. A COCO file becomes a row per image, with the
captions of its annotations.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.limits import InvalidJSON, check_json_value, parse_json, shorten

TABLES = (".csv", ".tsv", ".parquet", ".json")
BATCH = 64  # rows of a Parquet file read together; they may contain images
LARGEST = 1 << 30  # bytes of a JSON file, which is read as a whole
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ROW_KEYS = {"image", "file_name", "prompt", "captions", "caption", "key"}

Item = tuple[str, dict | LuminaError]  # location for messages, row or the reason why it is invalid


def get_table_suffix(name: str) -> str:
    """Return the suffix of a file name in lower case if it is one of TABLES, else ""."""
    return next((suffix for suffix in TABLES if name.lower().endswith(suffix)), "")


def read_table(file: IO[bytes], place: str, key: str | None = None) -> Iterator[Item] | None:
    """Yield (location, row or error) of an open table; None if a .json file holds a JSON object per line.

    place  name of the file; its suffix selects the format
    key    the key of items of a JSON array that are text
    """
    suffix = get_table_suffix(place)
    if suffix == ".parquet":
        return _parquet_rows(file, place)
    if suffix == ".json":
        return _json_rows(file, place, key)
    return _delimited_rows(file, place, suffix == ".tsv")


def parse_array(text: str, place: str, key: str | None = None) -> Iterator[Item]:
    """Yield (location, row or error) of the items of a JSON array.

    Raises:
        LuminaError: if the text is not JSON.
    """
    yield from _items(_load(text, place), place, key)


def count_table_rows(file: IO[bytes], place: str) -> int | None:
    """Return the number of rows of an open CSV, TSV or Parquet file; None for JSON and invalid files."""
    suffix = get_table_suffix(place)
    if suffix == ".json":
        return None
    if suffix == ".parquet":
        import pyarrow.parquet as parquet

        try:
            return parquet.ParquetFile(file).metadata.num_rows
        except (OSError, ValueError):
            return None
    return sum(not isinstance(row, LuminaError) for _, row in _delimited_rows(file, place, suffix == ".tsv"))


def _delimited_rows(file: IO[bytes], place: str, tabs: bool) -> Iterator[Item]:
    start = file.read(2)
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-16" if start in _UTF_16 else "utf-8-sig", newline="")
    try:
        reader: Any = None
        names, reader = _open_reader(text, tabs)
        for cells in _read_lines(reader):
            if not cells:
                continue
            if isinstance(cells, csv.Error):  # of one line; the next line is read
                kind = "TSV" if tabs else "CSV"
                where = f"{place} line {reader.line_num}"
                yield where, LuminaError(f"{where} is not {kind}: {cells}")
                continue
            where = f"{place} line {reader.line_num}"
            if len(cells) != len(names):
                yield where, LuminaError(f"{where}: number of fields differs from the header")
                continue
            row = _cells_to_row(dict(zip(names, map(_unquote, cells) if tabs else cells, strict=True)))
            if row:
                yield where, row
    except UnicodeError:
        yield place, LuminaError(f"{place} is not UTF-8 text")
    except csv.Error as error:
        line = getattr(reader, "line_num", 1)
        yield place, LuminaError(f"{place} line {line} is not {'TSV' if tabs else 'CSV'}: {error}")
    finally:
        with suppress(ValueError):  # the file is closed already
            text.detach()


def _read_lines(reader: Any) -> Iterator[list[str] | csv.Error]:
    """Yield the cells of each line, or the error of the line."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _open_reader(text: IO[str], tabs: bool) -> tuple[list[str], Any]:
    """Return the names in the header and the reader of the lines after it."""
    if tabs:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = text.readline()
        text.seek(0)
        # spreadsheets in many languages separate cells with semicolons
        separator = ";" if ";" in first and "," not in first else ","
        reader = csv.reader(text, delimiter=separator, strict=True)
    names = next((cells for cells in reader if cells), [])
    return [(_unquote(name) if tabs else name).strip().removeprefix("\ufeff") for name in names], reader


def _unquote(cell: str) -> str:
    """Return a cell of a TSV file without the quotes that enclose it; other quotes stay."""
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def _cells_to_row(cells: dict[str, str]) -> dict:
    return {name: value for name, value in cells.items() if value.strip()}


def _parquet_rows(file: IO[bytes], place: str) -> Iterator[Item]:
    import pyarrow.parquet as parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file, pre_buffer=False).iter_batches(BATCH):
            for values in batch.to_pylist():
                number += 1
                row = {name: value for name, value in values.items() if value is not None}
                yield f"{place} row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's errors derive from one of these
        reason = " ".join(str(error).split())[:200]
        yield place, LuminaError(f"{place} is not a readable Parquet file ({reason})")


def _json_rows(file: IO[bytes], place: str, key: str | None) -> Iterator[Item] | None:
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise LuminaError(
            f"{place}: more than {LARGEST >> 30} GiB of JSON; write one object per line (.jsonl)"
        )
    file.seek(0)
    try:
        text = data.decode("utf-16" if data[:2] in _UTF_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise LuminaError(f"{place} is not UTF-8 text") from error
    try:
        value = _load(text, place)
    except LuminaError:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            return None  # JSON Lines, or an error that names its line
        raise
    return iter(_items(value, place, key))


def _load(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except InvalidJSON as error:  # of one item, perhaps
        with suppress(ValueError, RecursionError):
            return json.loads(text)
        raise LuminaError(f"{place} is not JSON: {error.msg}") from error
    except ValueError as error:
        where = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise LuminaError(f"{place}{where} is not JSON: {getattr(error, 'msg', error)}") from error


def _items(value: Any, place: str, key: str | None) -> Iterator[Item]:
    """Yield the rows of a JSON document: an array, {name: fields} as kohya's tools write it, or one row.

    Raises:
        LuminaError: if the document contains annotations of another kind than captions.
    """
    _refuse_regions(value, place)
    for number, row in enumerate(_coco_rows(value, place) or _find_rows(value), start=1):
        where = f"{place} item {number}"
        if isinstance(row, LuminaError):
            yield where, row
            continue
        if isinstance(row, str) and key is not None:
            row = {key: row}
        if isinstance(row, dict):
            try:
                check_json_value(row)
                yield where, row
            except InvalidJSON as error:
                yield where, LuminaError(f"{where} is not a JSON object: {error.msg}")
        else:
            yield where, LuminaError(f"{where}: expected a JSON object, got {type(row).__name__}")


def _refuse_regions(value: Any, place: str) -> None:
    """Check that a JSON document is not a file of an annotation tool, with regions instead of captions.

    Raises:
        LuminaError: if it is one; the message names the tool.
    """
    first = value[0] if isinstance(value, list) and value else value
    first = first if isinstance(first, dict) else {}
    one = next(iter(first.values()), None)
    tasks = isinstance(first.get("data"), dict) and {"annotations", "predictions"} & first.keys()
    via = "_via_img_metadata" in first or (isinstance(one, dict) and {"filename", "regions"} <= one.keys())
    labelme = {"shapes", "imagePath"} <= first.keys()
    tool = "LabelMe" if labelme else "VIA" if via else "Label Studio" if tasks else ""
    if tool:
        raise LuminaError(
            f"{place} is an annotation file of {tool}, which is not read; write rows with image and caption "
            "(.jsonl)"
        )


def _coco_rows(value: Any, place: str) -> list[Any] | None:
    """Return a row per image of a COCO file, with its captions, and an error per caption without an image.

    Raises:
        LuminaError: if the annotations are not captions.
    """
    images = value.get("images") if isinstance(value, dict) and not _ROW_KEYS & value.keys() else None
    if not isinstance(images, list) or not any(
        isinstance(each, dict) and "file_name" in each for each in images
    ):
        return None
    notes = value.get("annotations")
    notes = [note for note in notes if isinstance(note, dict)] if isinstance(notes, list) else []
    captions: dict[str, list[str]] = {}
    for note in notes:
        if isinstance(note.get("caption"), str) and note["caption"].strip():
            captions.setdefault(str(note.get("image_id")), []).append(note["caption"].strip())
    if notes and not captions:
        raise LuminaError(
            f"{place} is a COCO file without captions: its annotations contain "
            f"{shorten(', '.join(map(str, notes[0])), 200)}; use the captions_*.json of the data set"
        )
    rows: list[Any] = []
    for each in images:
        if isinstance(each, dict):
            found = captions.pop(str(each.get("id")), None)
            each = {"file_name": each.get("file_name"), "image_id": each.get("id")}
            each |= {"caption": found[0] if len(found) == 1 else found} if found else {}
        rows.append(each)
    return rows + [
        LuminaError(f"{place}: a caption of image {name}, which the file does not list") for name in captions
    ]


def _find_rows(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return [value]
    lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
    if _ROW_KEYS & value.keys():
        return [value]
    if len(lists) == 1:
        return lists[0]  # {"data": [...], "version": ...}
    if value and all(isinstance(each, dict) for each in value.values()):
        return [{"image": name, **each} for name, each in value.items()]
    return [value]

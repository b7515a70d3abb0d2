"""Rows: JSON Lines, one flat object per line, read and written by every command.

If a row is read for one key ("prompt"), a line of plain text counts as a row with that key, unless the suffix
of the file is .jsonl or .ndjson. A .csv file is read as rows, too: its first line names the keys.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.row_checks import LongLine, bounded_lines, checked_prompt
from lumina_cli.core.limits import parse_json, shorten

LEVELS = ("detailed", "medium", "short", "tags")  # caption levels, from long to short
LANGUAGE = "en"  # default language of a caption
LEVEL_WORDS = {"short": 12, "medium": 30}  # most words of each level, to classify a caption without one
JSON_FILES = (".jsonl", ".ndjson")  # in these a line that is not JSON is an error, not plain text


def read_rows(source: str | Path | IO, key: str | None = None) -> Iterator[dict]:
    """Yield the rows of a file or an open stream (text or bytes); empty lines are skipped.

    With `key`, each row must have a value for it, and a line that is not a JSON object is itself that value;
    in .jsonl and .ndjson files only a quoted string is. The values of a .csv file are text; an empty cell is
    dropped. The seed of a row with a prompt becomes an integer (see `checked_prompt`).

    Raises:
        LuminaError: if the file is missing, a line is malformed, or the value is missing; the message names
            the file and the line.
    """
    return (row for _, row in read_rows_with_lines(source, key))


def read_rows_with_lines(source: str | Path | IO, key: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yield (location, row) for each row that `read_rows` yields; the location is "FILE line N"."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise LuminaError(
                f"{path}: no such file" if not path.exists() else f"{path} is not a regular file"
            )
        if path.suffix.lower() == ".csv":
            yield from _csv_rows(path, key)
            return
        with path.open("rb") as file:
            yield from _rows(file, f"{path} ", key, plain=path.suffix.lower() not in JSON_FILES)
    else:
        yield from _rows(source, "", key)


def _rows(
    lines: Iterable[str | bytes], place: str, key: str | None, plain: bool = True
) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(bounded_lines(lines), start=1):
        where = f"{place}line {number}"
        text = _decode(line, where).strip()
        if number == 1:
            text = text.removeprefix("\ufeff")
        if text:
            yield where, _checked(parse_row(text, where, key, plain), key, where)


def _checked(row: dict, key: str | None, where: str) -> dict:
    if key is not None:
        check_row(row, key, where)
    return checked_prompt(row, where) if key == "prompt" else row


def _csv_rows(path: Path, key: str | None) -> Iterator[tuple[str, dict]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for cells in reader:
                where = f"{path} line {reader.line_num}"
                if None in cells or None in cells.values():
                    raise LuminaError(f"{where}: number of fields differs from the header")
                row = {name: value for name, value in cells.items() if value.strip()}
                if row:
                    yield where, _checked(row, key, where)
    except UnicodeDecodeError as error:
        raise LuminaError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise LuminaError(f"{path} line {reader.line_num} is not CSV: {error}") from error


def _decode(line: str | bytes | LongLine, where: str) -> str:
    if isinstance(line, LongLine):
        raise LuminaError(f"{where} is {line.reason}")
    try:
        return line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        raise LuminaError(f"{where} is not UTF-8 text") from error


def parse_row(text: str, where: str, key: str | None = None, plain: bool = True) -> dict:
    """Return the row in one line; without `plain`, text that is not JSON is an error even with a `key`.

    Raises:
        LuminaError: if the line is not a JSON object; the message begins with `where`.
    """
    if key is not None and not text.startswith("{"):
        value = _plain(text)
        if plain or value != text:  # a value that differs from its line was a quoted JSON string
            return {key: value}
    try:
        row = parse_json(text)
    except ValueError as error:
        raise LuminaError(f"{where} is not a JSON object: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict):
        raise LuminaError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _plain(text: str) -> str:
    """Return plain text as it is, and a quoted JSON string, as `jq .prompt` writes it, unquoted."""
    if text.startswith('"'):
        try:
            value = parse_json(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


def check_row(row: dict, key: str, where: str) -> None:
    """Check that a row has a value for `key`.

    Raises:
        LuminaError: if the key is missing or its value is empty.
    """
    if key not in row:
        found = shorten(", ".join(map(str, row)), 200) or "nothing"
        raise LuminaError(f"{where} has no {key!r}, only {found}")
    if row[key] is None or (isinstance(row[key], str) and not row[key].strip()):
        raise LuminaError(f"{where}: {key!r} is empty")


def get_captions(row: dict, where: str = "the row") -> dict[str, dict[str, str]]:
    """Return a copy of a row's captions, {language: {level: text}}; {} if it has none.

    A null is dropped: tools with a fixed table schema write one if a row does not have such a caption.

    Raises:
        LuminaError: if the captions have another structure.
    """
    captions = row.get("captions") or {}
    if not isinstance(captions, dict) or not all(map(_are_texts, captions.values())):
        raise LuminaError(f"'captions' of {where} is not {{language: {{level: text}}}}")
    kept = {
        lang: {level: text for level, text in (texts or {}).items() if text is not None}
        for lang, texts in captions.items()
    }
    return {lang: texts for lang, texts in kept.items() if texts}


def get_error(row: dict) -> str | None:
    """Return the error with which an earlier command passed a row on, or None."""
    error = row.get("error")
    return error if isinstance(error, str) and error.strip() else None


def get_error_code(row: dict) -> str:
    """Return the error code of a row that an earlier command rejected; "upstream" if it has none."""
    code = row.get("code")
    return code if isinstance(code, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", code) else "upstream"


def _are_texts(levels: Any) -> bool:
    return levels is None or (
        isinstance(levels, dict) and all(isinstance(text, str | None) for text in levels.values())
    )


def write_rows(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows to a file, whole or not at all; return their number."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        return sum(1 for row in rows if file.write(dump_row(row) + "\n"))


def dump_row(row: dict) -> str:
    """Return a row as one line of JSON.

    Paths become text, arrays become lists, numbers that JSON does not have (NaN, infinity) become null.
    Values that exist only in memory (an image, bytes) are dropped.
    """
    value = to_json_value(row)
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: UTF-8 cannot encode it, a JSON escape can
        line = json.dumps(value)
    return line


def to_json_value(value: Any) -> Any:
    """Return `value` with everything that JSON cannot represent converted or dropped."""
    if isinstance(value, dict):
        return {str(name): to_json_value(item) for name, item in value.items() if not is_in_memory(item)}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json_value(item) for item in value if not is_in_memory(item)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, without an import of either
        return to_json_value(value.tolist())
    return str(value)


def is_in_memory(value: Any) -> bool:
    """Whether a value (an image, bytes) cannot be written to a line of JSON."""
    return isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "getpixel")


def chunked(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def parse_split(text: str | None) -> tuple[int, int]:
    """Return (I, N) of "I/N"; without text (0, 1), which is the whole.

    Raises:
        UsageError: if the text is not I/N with 0 <= I < N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if index >= count:
        raise UsageError(f"split is {text!r}, but must be I/N, such as 0/4, with I from 0 to N - 1")
    return index, count


def caption_fields(text: object) -> dict:
    """Return {"captions": ...} for one caption as other tools store it; {} if `text` is not text."""
    if not isinstance(text, str) or not text.strip():
        return {}
    words = len(text.split())
    level = next((level for level, most in LEVEL_WORDS.items() if words <= most), "detailed")
    return {"captions": {LANGUAGE: {level: text.strip()}}}


def with_captions(row: dict) -> dict:
    """Return a row with its "caption", "text" or "prompt" copied to "captions" if it has none."""
    for name in ("caption", "text", "prompt"):
        if "captions" not in row and (captions := caption_fields(row.get(name))):
            return row | captions
    return row

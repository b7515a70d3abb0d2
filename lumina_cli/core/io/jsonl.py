"""Rows: JSON Lines, one flat object per line, read and written by every command.

If a row is read for one key ("prompt"), a line of plain text counts as a row with that key, unless the suffix
of the file is .jsonl or .ndjson. Tables (.csv, .tsv, .parquet, .json) are read as rows, too: io/tables.py.
"""

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
from lumina_cli.core.io.tables import Item, get_table_suffix, parse_array, read_table
from lumina_cli.core.limits import parse_json, shorten

LEVELS = ("detailed", "medium", "short", "tags")  # caption levels, from long to short
JSON_FILES = (".jsonl", ".ndjson")  # in these a line that is not JSON is an error, not plain text
_ARRAY = re.compile(r"\[\s*(\{|$)")  # the first line of a JSON array of objects


def read_rows(source: str | Path | IO, key: str | None = None) -> Iterator[dict]:
    """Yield the rows of a file or an open stream (text or bytes); empty lines are skipped.

    With `key`, each row must have a value for it, and a line that is not a JSON object is itself that value;
    in .jsonl and .ndjson files only a quoted string is. Suffixes of TABLES select other formats. The seed of
    a row with a prompt becomes an integer (see `checked_prompt`). In .txt files of prompts, lines that begin
    with "#" are comments, as in those of kohya's scripts.

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
        with path.open("rb") as file:
            yield from _require_rows(parse_rows(file, str(path), key))
    else:
        yield from _require_rows(parse_rows(source, "", key))


def count_comments(path: Path) -> int:
    """Return the number of lines that `read_rows` takes as comments in a .txt file of prompts."""
    with path.open("rb") as file:
        lines = (line for line in bounded_lines(file) if isinstance(line, bytes))
        return sum(line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"#") for line in lines)


def _require_rows(items: Iterable[Item]) -> Iterator[tuple[str, dict]]:
    for where, row in items:
        if isinstance(row, LuminaError):
            raise row
        yield where, row


def parse_rows(
    lines: IO | Iterable[str | bytes], place: str = "", key: str | None = None, check: bool = True
) -> Iterator[Item]:
    """Yield (location, row or the error of this row) of an open file or stream.

    place  name of the file, "" for a stream; its suffix selects the format
    key    as in `read_rows`; `check`: whether each row must have a value for it
    """
    table = read_table(lines, place, key) if get_table_suffix(place) else None
    for where, row in _parse_lines(lines, place, key) if table is None else table:
        try:
            item = row if isinstance(row, LuminaError) or not check else _checked(row, key, where)
        except LuminaError as error:
            item = error
        yield where, item


def _parse_lines(lines: Iterable[str | bytes], place: str, key: str | None) -> Iterator[Item]:
    plain = not place.lower().endswith((*JSON_FILES, ".json"))
    commented = key == "prompt" and place.lower().endswith(".txt")
    start = f"{place} " if place else ""
    lines = iter(bounded_lines(lines))
    for number, line in enumerate(lines, start=1):
        where, item = f"{start}line {number}", None
        try:
            text = _decode(line, where).strip()
            text = text.removeprefix("\ufeff") if number == 1 else text
            if number == 1 and _ARRAY.match(text) and (key != "prompt" or not plain):
                yield from _parse_rest_as_array(text, lines, place or "stdin", key)
            elif text and not (commented and text.lstrip().startswith("#")):
                item = parse_row(text, where, key, plain)
        except LuminaError as error:
            item = error
        if item is not None:
            yield where, item


def _parse_rest_as_array(first: str, lines: Iterable, place: str, key: str | None) -> Iterator[Item]:
    rest = [_decode(line, place) for line in lines]
    yield from parse_array("\n".join([first, *rest]), place, key)


def _checked(row: dict, key: str | None, where: str) -> dict:
    if key is not None:
        check_row(row, key, where)
    return checked_prompt(row, where) if key == "prompt" else row


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
        remedy = "; name its column, as in FILE?image=COLUMN" if key == "image" and row else ""
        raise LuminaError(f"{where} has no {key!r}, only {found}{remedy}")
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

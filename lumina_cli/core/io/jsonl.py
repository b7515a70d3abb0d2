"""Rows: JSONL, one flat object a line, which every verb reads and writes.

Where a row is read for one key ("prompt"), a line of plain text counts as a row with that key, except in a
file whose name promises JSON. A .csv file is read, too: its first line names the keys.
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

LEVELS = ("detailed", "medium", "short", "tags")  # caption levels, from long to short
LANGUAGE = "en"  # default language of a caption
LEVEL_WORDS = {"short": 12, "medium": 30}  # most words of a level, for a caption without one
JSON_FILES = (".jsonl", ".ndjson")  # here a line that is no JSON is a broken row, not plain text


def read_rows(source: str | Path | IO, key: str | None = None) -> Iterator[dict]:
    """Yield the rows of a file or an open stream (text or bytes); empty lines are skipped.

    With `key`, each row must have a value for it, and a line that is not a JSON object is itself that value,
    but not in .jsonl and .ndjson files, where only a quoted string is. Errors name the file and the line. The
    values of a .csv file are text, but for "seed"; an empty cell is no value.
    """
    return (row for _, row in read_rows_with_lines(source, key))


def read_rows_with_lines(source: str | Path | IO, key: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yield (where it is, the row) of each row that `read_rows` gives; where is "FILE line N"."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise LuminaError(
                f"{path}: no such file of rows" if not path.exists() else f"{path} is not a file of rows"
            )
        if path.suffix == ".csv":
            yield from _csv_rows(path, key)
            return
        with path.open("rb") as file:
            yield from _rows(file, f"{path} ", key, plain=path.suffix not in JSON_FILES)
    else:
        yield from _rows(source, "", key)


def _rows(
    lines: Iterable[str | bytes], place: str, key: str | None, plain: bool = True
) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(lines, start=1):
        where = f"{place}line {number}"
        text = _decode(line, where).strip()
        if number == 1:
            text = text.removeprefix("\ufeff")
        if text:
            yield where, _checked(parse_row(text, where, key, plain), key, where)


def _checked(row: dict, key: str | None, where: str) -> dict:
    if key == "prompt":
        check_prompt(row, where)
    elif key is not None:
        check_row(row, key, where)
    return row


def _csv_rows(path: Path, key: str | None) -> Iterator[tuple[str, dict]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for cells in reader:
                where = f"{path} line {reader.line_num}"
                if None in cells or None in cells.values():
                    raise LuminaError(f"{where} has not as many cells as the first line")
                row = {name: value for name, value in cells.items() if value.strip()}
                if row.get("seed", "").strip().removeprefix("-").isdecimal():
                    row["seed"] = int(row["seed"])
                if row:
                    yield where, _checked(row, key, where)
    except UnicodeDecodeError as error:
        raise LuminaError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise LuminaError(f"{path} line {reader.line_num} is not CSV: {error}") from error


def _decode(line: str | bytes, where: str) -> str:
    try:
        return line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        raise LuminaError(f"{where} is not UTF-8 text") from error


def parse_row(text: str, where: str, key: str | None = None, plain: bool = True) -> dict:
    """Return the row that one line holds; `where` begins the error message of a line that holds none.

    Without `plain`, text that is not JSON holds none, even for a `key`.
    """
    if key is not None and not text.startswith("{"):
        value = _plain(text)
        if plain or value != text:  # what differs from its line was a quoted JSON string
            return {key: value}
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise LuminaError(f"{where} is not a JSON object: {reason}") from error
    if not isinstance(row, dict):
        raise LuminaError(f"{where} is not a JSON object but {type(row).__name__}")
    return row


def _plain(text: str) -> str:
    """Plain text stands for itself; what `jq .prompt` writes, a quoted JSON string, for its content."""
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


def check_row(row: dict, key: str, where: str) -> None:
    """Raise LuminaError where a row has no value for `key`."""
    if key not in row:
        found = ", ".join(map(str, row)) or "nothing"
        raise LuminaError(f"{where} has no {key!r}, only {found}")
    if row[key] is None or (isinstance(row[key], str) and not row[key].strip()):
        raise LuminaError(f"{where}: {key!r} is empty")


def check_prompt(row: dict, where: str) -> None:
    """Raise LuminaError where a row has no text as "prompt" or "negative", or no whole number as "seed"."""
    check_row(row, "prompt", where)
    seed = row.get("seed", 0)
    for name in ("prompt", "negative"):
        if not isinstance(row.get(name) or "", str):
            raise LuminaError(f"{where}: {name!r} is {row[name]!r}, but must be text")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise LuminaError(f"{where}: 'seed' is {seed!r}, but must be a whole number")


def get_captions(row: dict, where: str = "the row") -> dict[str, dict[str, str]]:
    """Return a copy of a row's captions, {} where it has none; LuminaError where they have another shape.

    A null, which tools that know only tables put where a row has no such caption, is left out.
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
    """Return why an earlier verb could do nothing with a row, which it passed on to be counted; or None."""
    error = row.get("error")
    return error if isinstance(error, str) and error.strip() else None


def get_error_code(row: dict) -> str:
    """Return the code that an earlier verb gave a row which it left out; "upstream" where it gave none."""
    code = row.get("code")
    return code if isinstance(code, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", code) else "upstream"


def _are_texts(levels: Any) -> bool:
    return levels is None or (
        isinstance(levels, dict) and all(isinstance(text, str | None) for text in levels.values())
    )


def write_rows(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows to a file, whole or not at all; return how many."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        return sum(1 for row in rows if file.write(dump_row(row) + "\n"))


def dump_row(row: dict) -> str:
    """Return a row as one line of JSON.

    Paths become text, numbers that JSON lacks (NaN, infinity) null, arrays lists; what lives only in
    memory (a picture, bytes) is left out.
    """
    value = to_json_value(row)
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold but JSON can spell
        line = json.dumps(value)
    return line


def to_json_value(value: Any) -> Any:
    """Return `value` with nothing in it that JSON cannot hold."""
    if isinstance(value, dict):
        return {str(name): to_json_value(item) for name, item in value.items() if not is_in_memory(item)}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json_value(item) for item in value if not is_in_memory(item)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, without importing them
        return to_json_value(value.tolist())
    return str(value)


def is_in_memory(value: Any) -> bool:
    """Whether a value (a picture, bytes) has no place in a line of JSON."""
    return isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "getpixel")


def chunked(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def parse_split(text: str | None) -> tuple[int, int]:
    """Return (I, N) of "I/N"; UsageError where `text` is something else. Without text, the whole: (0, 1)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if index >= count:
        raise UsageError(f"split is {text!r}, but must be I/N, such as 0/4, with I from 0 to N - 1")
    return index, count


def caption_fields(text: object) -> dict:
    """Return {"captions": ...} of one caption as other tools write it; empty where it is no text."""
    if not isinstance(text, str) or not text.strip():
        return {}
    words = len(text.split())
    level = next((level for level, most in LEVEL_WORDS.items() if words <= most), "detailed")
    return {"captions": {LANGUAGE: {level: text.strip()}}}


def with_captions(row: dict) -> dict:
    """Move a caption under one of the names that other tools use to where ours are."""
    for name in ("caption", "text", "prompt"):
        if "captions" not in row and (captions := caption_fields(row.get(name))):
            return row | captions
    return row

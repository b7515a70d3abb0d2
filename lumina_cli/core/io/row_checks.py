"""Checks of rows: long lines, text that UTF-8 cannot encode, and the values of rows with prompts."""

import io
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.limits import MAX_ROW, is_text, shorten

TEXTS = ("prompt", "negative", "caption", "text")  # keys whose text goes to a tokenizer
_SEED = re.compile(r"\s*([-+]?[0-9]{1,20})(\.0*)?\s*")
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1  # other seeds repeat the noise of these
_SHOWN = 60  # characters of an invalid value in a message


class LongLine:
    """Stands for a line of more than MAX_ROW bytes, which is skipped without being held in memory."""

    reason = f"longer than {MAX_ROW >> 20} MiB, the limit of a row"


def bounded_lines(lines: Iterable[str | bytes]) -> Iterator[str | bytes | LongLine]:
    """Yield the lines of a file, an open stream or a list; a LongLine for each that is too long."""
    if isinstance(lines, io.RawIOBase) or (hasattr(lines, "readinto") and not hasattr(lines, "peek")):
        lines = lines if isinstance(lines, io.BytesIO) else io.BufferedReader(lines)
    if not isinstance(lines, io.BufferedIOBase | io.TextIOBase):
        yield from (LongLine() if len(line) > MAX_ROW else line for line in lines)
        return
    while line := lines.readline(MAX_ROW + 1):
        if len(line) <= MAX_ROW:
            yield line
            continue
        end = "\n" if isinstance(line, str) else b"\n"
        while line and not line.endswith(end):
            line = lines.readline(MAX_ROW)
        yield LongLine()


def check_text(row: dict, where: str) -> None:
    """Check that the texts of a row, its prompts and captions, are text that UTF-8 can encode.

    Raises:
        LuminaError: if one contains half of a surrogate pair, or a NUL character.
    """
    for name in TEXTS:
        _check_encodable(row.get(name), repr(name), where)
    captions = row.get("captions")
    for lang, levels in captions.items() if isinstance(captions, dict) else ():
        for level, text in levels.items() if isinstance(levels, dict) else ():
            _check_encodable(text, f"the caption {lang}.{level}", where)


def _check_encodable(value: Any, name: str, where: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise LuminaError(f"{where}: {name} contains NUL characters")
    if isinstance(value, str) and not is_text(value):
        raise LuminaError(
            f"{where}: {name} is not valid UTF-8 text ({shorten(ascii(value), _SHOWN)}): it contains half of "
            "a surrogate pair, or bytes of another encoding"
        )


def checked_prompt(row: dict, where: str) -> dict:
    """Return a row with a prompt; a seed of null or "" is dropped, one such as 7.0 or "7" becomes an integer.

    Raises:
        LuminaError: if "prompt" or "negative" is not text, or "seed" is not an integer of at most 64 bits.
    """
    for name in ("prompt", "negative"):
        if not isinstance(row.get(name), str | None):
            raise LuminaError(f"{where}: {name!r} is {_show(row[name])}, but must be text")
    check_text(row, where)
    empty = [name for name in ("seed", "size") if name in row and _is_empty(row[name])]
    row = {name: value for name, value in row.items() if name not in empty} if empty else row
    if "seed" not in row or (type(row["seed"]) is int and _LOWEST <= row["seed"] <= _HIGHEST):
        return row
    return row | {"seed": _whole(row["seed"], where)}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _whole(value: Any, where: str) -> int:
    number = value
    if isinstance(value, str) and (found := _SEED.fullmatch(value)):
        number = int(found[1])
    elif isinstance(value, float) and math.isfinite(value) and value.is_integer():
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise LuminaError(f"{where}: 'seed' is {_show(value)}, but must be a whole number")
    if not _LOWEST <= number <= _HIGHEST:
        raise LuminaError(f"{where}: 'seed' is {_show(value)}, but must have at most 64 bits")
    return number


def _show(value: Any) -> str:
    try:
        return shorten(repr(value), _SHOWN)
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"

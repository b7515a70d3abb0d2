"""Limits on other people's files, checked before any work, and JSON that is parsed within them."""

import json
import re
from pathlib import Path
from typing import Any

MAX_DEPTH = 256  # levels of nested lists and objects in JSON
MAX_DIGITS = 300  # digits of an integer in JSON: larger ones do not fit into a float
MAX_ROW = 16 << 20  # bytes of one row
MAX_SETTINGS = 64 << 20  # bytes of a file of settings: a config, a plan, an index of weights
MAX_RECIPE = 1 << 20  # bytes of a YAML file
MAX_MESSAGE = 2000  # characters of an error message

_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class InvalidJSON(ValueError):
    """JSON beyond the limits; `msg` is the reason, as in json.JSONDecodeError."""

    def __init__(self, msg: str):
        super().__init__(msg)
        self.msg = msg


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        InvalidJSON: if it is nested deeper than MAX_DEPTH, or an integer has more than MAX_DIGITS digits.
        ValueError: if it is not JSON.
    """
    if isinstance(text, bytes | bytearray):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python itself refuses more than 4300 digits
        raise _too_long() from None
    if text.count("[") + text.count("{") > MAX_DEPTH or _LONG.search(text):
        check_json_value(value)
    return value


def read_text(path: Any, most: int = MAX_SETTINGS) -> str:
    """Return the text of a small UTF-8 file, at a path or at a RemotePath (io/remote.py).

    Raises:
        InvalidJSON: if it has more than `most` bytes.
        UnicodeDecodeError: if it is not UTF-8.
        OSError: if it cannot be read.
    """
    if isinstance(path, str | Path):
        with open(path, "rb") as file:
            data = file.read(most + 1)
    else:
        data = path.read_bytes()
    if len(data) > most:
        raise InvalidJSON(f"larger than {most >> 20} MiB")
    return data.decode()


def read_json_file(path: Any) -> Any:
    """Return the value in a JSON file of at most MAX_SETTINGS bytes.

    Raises:
        ValueError: if it is larger, not JSON, or beyond the limits of `parse_json`.
        OSError: if it cannot be read.
    """
    return parse_json(read_text(path))


def check_json_value(value: Any) -> None:
    """Check the depth and the integers of a value.

    Raises:
        InvalidJSON: if it is nested deeper than MAX_DEPTH, or an integer has more than MAX_DIGITS digits.
    """
    level, depth = [value], 0
    while level:
        inner = [each for each in level if isinstance(each, dict | list | tuple)]
        depth += 1
        if inner and depth > MAX_DEPTH:
            raise _too_deep()
        for each in level:
            if type(each) is int and abs(each) >= 10**MAX_DIGITS:
                raise _too_long()
        level = [item for each in inner for item in (each.values() if isinstance(each, dict) else each)]


def _too_deep() -> InvalidJSON:
    return InvalidJSON(f"nested too deeply (more than {MAX_DEPTH} levels)")


def _too_long() -> InvalidJSON:
    return InvalidJSON(f"an integer has more than {MAX_DIGITS} digits")


def prune_json(text: str) -> str:
    """Return JSON text with null for everything that is nested deeper than MAX_DEPTH."""
    kept, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept.append(text[start : token.start()])
        elif token[0] in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                kept.append("null")
                start = token.end()
    return "".join([*kept, text[start:]]) if depth <= MAX_DEPTH else text


def shorten(text: str, most: int = MAX_MESSAGE) -> str:
    """Return text of at most `most` characters: a longer one without its middle, since both ends matter."""
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can encode; half a surrogate pair is not."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

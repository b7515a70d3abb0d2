"""A file of captions that can be interrupted at any moment and continued: rows whole, in order, none twice.

    FILE                 a line a row, in the order of the source
    FILE.rejects.jsonl   a line a row that was left out: "row" (its number in the source), key, image, reason,
                         and "code", the reason in one word, where there is one
    FILE.state.json      the settings that the rows were written with

How far a run came is told by the lines that are there, so that nothing has to be kept in step with them. A
torn last line is dropped. A run goes on at the beginning of the batch in which it stopped, so that the model
sees the same batches as in a run that was never interrupted; what it writes again is not written twice.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors, lock_file
from lumina_cli.core.io.jsonl import dump_row, get_error

Row = dict[str, Any]
ADDED = ("captions", "captioned_by", "caption_scores", "rejected_captions")  # what captioning puts into a row


class ResumableFile:
    """The file of one run, with what an earlier one left in it; a context manager that closes it.

    `settings` are those that the rows depend on. `done` is how many rows of the source are in the file, and
    `before` the (rows, bad ones, ones in vain) that this run does not do again: all of them until there is a
    new row. In vain was a row of which, as it was written, `is_in_vain` says so.
    Raises UsageError where the file was begun with other settings or by something else, LuminaError where
    another process writes it.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Row,
        batch: int = 1,
        is_in_vain: Callable[[Row], bool] = lambda row: False,
    ):
        self.path, self._is_in_vain = Path(path), is_in_vain
        if re.match(r"[a-z][a-z0-9+]+:/", str(path)):
            raise UsageError(
                f"--out {path} is elsewhere, where no line can be added to a file; name a local file"
            )
        self.rejects = self.path.with_name(f"{self.path.name}.rejects.jsonl")
        self.state = self.path.with_name(f"{self.path.name}.state.json")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            settings = _parsed(dump_row(settings))
            self._compare_settings(settings)
            self._file = _opened_alone(self.path)
            try:
                self._begin(settings)
            except BaseException:
                self._file.close()
                raise
            written = _whole_lines(self.path)
            self._bad = self._known_bad(written)
        self.done = written + len(self._bad)
        self.before = (self.done, len(self._bad), 0)
        self._start = self.done - self.done % batch
        self._number = self._start  # of the next row that is told

    def __enter__(self) -> "ResumableFile":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError), self._file:  # what the disk refused was told when it was written
            os.fsync(self._file.fileno())

    def _compare_settings(self, settings: Row) -> None:
        if self.state.is_file():
            old = _parsed(self.state.read_text(encoding="utf-8"))
            for name in {**old, **settings}:
                if old.get(name) != settings.get(name) and self._has_rows():
                    raise UsageError(
                        f"{self.path} was begun with {name} {_format_setting(old.get(name))}, not "
                        f"{_format_setting(settings.get(name))}; name another file, or delete it and "
                        f"{self.state.name}"
                    )
        elif self.path.exists() and (not self.path.is_file() or self.path.stat().st_size):
            raise UsageError(f"{self.path} is there, and not by `lumina caption --out`; name another file")

    def _begin(self, settings: Row) -> None:
        """Note the settings, over those of a run that wrote no row; nobody else writes the file by now."""
        self._compare_settings(settings)
        if not self.state.is_file() or _parsed(self.state.read_text(encoding="utf-8")) != settings:
            with atomic_write(self.state) as aside:
                aside.write_text(dump_row(settings) + "\n", encoding="utf-8")

    def _has_rows(self) -> bool:
        """Whether a row was written or left out by an earlier run."""
        return any(map(_has_line, (self.path, self.rejects)))

    def _known_bad(self, written: int) -> set[int]:
        """Return which rows were left out; after a power cut those past `written` rows are dropped."""
        if not _whole_lines(self.rejects):
            return set()
        lines = self.rejects.read_bytes().splitlines(keepends=True)
        numbers = [_parsed(line).get("row") for line in lines]
        kept = 0
        while kept < len(numbers) and isinstance(numbers[kept], int) and numbers[kept] - kept <= written:
            kept += 1
        if kept < len(lines):
            with atomic_write(self.rejects) as aside:
                aside.write_bytes(b"".join(lines[:kept]))
        return set(numbers[:kept])

    def remaining(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows that are still to do, after those that are done have been compared with the file.

        LuminaError where the source is not the one that the file was begun with.
        """
        count, vain, vain_again, again = 0, 0, 0, []
        with self.path.open("rb") as file:
            for number, row in enumerate(rows):
                count = number + 1
                if number < self.done and number not in self._bad:
                    written = _parsed(file.readline())
                    self._compare(number, row, written)
                    if self._is_in_vain(written):
                        vain, vain_again = vain + 1, vain_again + (number >= self._start)
                        self.before = (*self.before[:2], vain)
                if self._start <= number < self.done:
                    again.append(row)  # the rest of a batch, needed only where the batch goes on
                elif number >= self.done:
                    if number == self.done:
                        bad = sum(row < self._start for row in self._bad)
                        self.before = (self._start, bad, vain - vain_again)
                        yield from again
                    yield row
        if count < self.done:
            raise LuminaError(
                f"{self.path} holds {self.done} rows, but the source has only {count} now; {self._remedy}"
            )

    def _compare(self, number: int, row: Row, written: Row) -> None:
        if _identity(written) != _identity(_parsed(dump_row(row))):
            raise LuminaError(
                f"row {number} of the source is {_name(row)}, but in {self.path} it is {_name(written)}: the "
                f"source has changed since; {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return f"--out ANOTHER --reuse {self.path} writes it anew and takes over the captions of this one"

    def write(self, row: Row) -> bool:
        """Put a row at the end of the file; False where it is there already."""
        new = self._is_new()
        if new:
            with disk_errors(self.path):
                _append(self._file, dump_row(row))
        return new

    def reject(self, row: Row, reason: str) -> bool:
        """Note a row with an "error" that is left out, and why; False where that is there already."""
        number, new = self._number, self._is_new()
        if new:
            image = row.get("image")
            told = image if isinstance(image, str) or ".tar#" in str(image) else None
            left_out = {"row": number, "key": row.get("key"), "image": told}
            left_out |= {"code": row["code"]} if get_error(row) and row.get("code") else {}
            line = dump_row(left_out | {"reason": reason})
            with disk_errors(self.rejects), self.rejects.open("ab", buffering=0) as file:
                _append(file, line)
                os.fsync(file.fileno())
        return new

    def _is_new(self) -> bool:
        self._number += 1
        return self._number > self.done


def _append(file: IO[bytes], line: str) -> None:
    data = memoryview(line.encode() + b"\n")
    while data:  # a full disk takes a part of it, then refuses
        data = data[file.write(data) :]


def _opened_alone(path: Path) -> IO[bytes]:
    """Open a file to write at its end, where no other process does so; as far as the system can tell."""
    file = path.open("ab", buffering=0)
    try:
        lock_file(file, path, "name another file")
    except LuminaError:
        file.close()
        raise
    return file


def _has_line(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def _whole_lines(path: Path) -> int:
    """Return how many lines a file has, 0 where there is none; a torn last one is cut off."""
    count = end = read = 0
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            count += chunk.count(b"\n")
            end = read + chunk.rfind(b"\n") + 1 if b"\n" in chunk else end
            read += len(chunk)
    if end < read:
        os.truncate(path, end)
    return count


def _parsed(text: str | bytes) -> Row:
    try:
        row = json.loads(text)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _identity(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ADDED}


def _name(row: Row) -> str:
    return str(row.get("image") or row.get("key") or "nothing")[:200] if row else "nothing"


def _format_setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str("none" if value is None else value)

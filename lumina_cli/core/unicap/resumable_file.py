"""An output file of captions that can be interrupted at any time and resumed, without lost or repeated rows.

    FILE                 one line per row, in the order of the source
    FILE.rejects.jsonl   one line per skipped row: "row" (its number in the source), key, image, reason, and
                         optionally "code", the reason in one word
    FILE.state.json      the settings of the run
    FILE.answers.jsonl   answers of a paid endpoint that no row contains yet, see engines/journal.py

The number of lines is the progress, so no separate counter can disagree with it. A torn last line is dropped.
A run resumes at the start of the batch that was interrupted, so the model sees the same batches as in an
uninterrupted run; rows that are in the file already are not written again.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import atomic_write, disk_errors, lock_file, sweep
from lumina_cli.core.io.jsonl import dump_row, get_error
from lumina_cli.core.limits import parse_json
from lumina_cli.core.shards.tar import RejectedImage

Row = dict[str, Any]
ADDED = (
    "captions",
    "captioned_by",
    "caption_scores",
    "rejected_captions",
)  # added by captioning


class ResumableFile:
    """The output file of a run, with the rows of an earlier run; a context manager.

    settings             the settings that the rows depend on
    batch                rows per batch
    is_fully_rejected    whether a written row has none of its requested captions
    done                 number of source rows in the file, written or skipped
    before               (rows, unreadable ones, fully rejected ones) that this run does not repeat; all rows
                         of the file until the first new row

    Raises:
        UsageError: if the file was started with other settings, or by another program, or is not local.
        LuminaError: if another process writes the file.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Row,
        batch: int = 1,
        is_fully_rejected: Callable[[Row], bool] = lambda row: False,
    ):
        self.path, self._is_fully_rejected = Path(path), is_fully_rejected
        if re.match(r"[a-z][a-z0-9+]+:/", str(path)):
            raise UsageError(f"--out {path} is remote and cannot be appended to; choose a local file")
        self.rejects = self.path.with_name(f"{self.path.name}.rejects.jsonl")
        self.state = self.path.with_name(f"{self.path.name}.state.json")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            settings = _parse(dump_row(settings))
            self._compare_settings(settings)
            self._file = _open_locked(self.path)
            try:
                self._write_settings(settings)
            except BaseException:
                self._file.close()
                raise
            written = _count_lines(self.path)
            self._skipped = self._read_skipped(written)
        self.done = written + len(self._skipped)
        self.before = (self.done, len(self._skipped), 0)
        self._start = self.done - self.done % batch
        self._number = self._start  # source number of the next row

    def __enter__(self) -> "ResumableFile":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError), self._file:  # write errors were reported when they happened
            os.fsync(self._file.fileno())
        sweep(self.path.parent)

    def _compare_settings(self, settings: Row) -> None:
        if self.state.is_file():
            old = _parse(self.state.read_text(encoding="utf-8"))
            for name in {**old, **settings}:
                if old.get(name) != settings.get(name) and self._has_rows():
                    raise UsageError(
                        f"{self.path} was started with {name}={_format_setting(old.get(name))}, but this run "
                        f"has {name}={_format_setting(settings.get(name))}; choose another file, or delete "
                        f"it and {self.state.name}"
                    )
        elif self.path.exists() and (not self.path.is_file() or self.path.stat().st_size):
            raise UsageError(
                f"{self.path} exists and was not written by `lumina caption --out`; choose another file"
            )

    def _write_settings(self, settings: Row) -> None:
        """Write the settings, replacing those of a run without rows; the lock is held by now."""
        self._compare_settings(settings)
        if not self.state.is_file() or _parse(self.state.read_text(encoding="utf-8")) != settings:
            with atomic_write(self.state) as aside:
                aside.write_text(dump_row(settings) + "\n", encoding="utf-8")

    def _has_rows(self) -> bool:
        """Return whether an earlier run wrote or skipped a row."""
        return any(map(_has_line, (self.path, self.rejects)))

    def _read_skipped(self, written: int) -> set[int]:
        """Return the numbers of skipped rows; drop those past the `written` rows, left by a power failure."""
        if not _count_lines(self.rejects):
            return set()
        lines = self.rejects.read_bytes().splitlines(keepends=True)
        numbers = [_parse(line).get("row") for line in lines]
        kept = 0
        while kept < len(numbers) and isinstance(numbers[kept], int) and numbers[kept] - kept <= written:
            kept += 1
        if kept < len(lines):
            with atomic_write(self.rejects) as aside:
                aside.write_bytes(b"".join(lines[:kept]))
        return set(numbers[:kept])

    def remaining(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Compare the source with the rows of the file, then yield the remaining rows.

        Raises:
            LuminaError: if the source is not the one that the file was started with.
        """
        count, rejected, repeated_rejected, repeated = 0, 0, 0, []
        with self.path.open("rb") as file:
            for number, row in enumerate(rows):
                count = number + 1
                if number < self.done and number not in self._skipped:
                    written = _parse(file.readline())
                    self._compare(number, row, written)
                    if self._is_fully_rejected(written):
                        rejected, repeated_rejected = (
                            rejected + 1,
                            repeated_rejected + (number >= self._start),
                        )
                        self.before = (*self.before[:2], rejected)
                if self._start <= number < self.done:
                    repeated.append(row)  # start of the interrupted batch, needed only if the batch continues
                elif number >= self.done:
                    if number == self.done:
                        bad = sum(row < self._start for row in self._skipped)
                        self.before = (self._start, bad, rejected - repeated_rejected)
                        yield from repeated
                    yield row
        if count < self.done:
            raise LuminaError(
                f"{self.path} has {self.done} rows, but the source has only {count} now; {self._remedy}"
            )

    def _compare(self, number: int, row: Row, written: Row) -> None:
        if _identity(written) != _identity(_parse(dump_row(row))):
            raise LuminaError(
                f"row {number} of the source is {_describe_row(row)}, but in {self.path} it is "
                f"{_describe_row(written)}: the source has changed since; {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return f"to keep these captions, rerun with --out NEW --reuse {self.path}"

    def write(self, row: Row) -> bool:
        """Append a row; return False if the file has it already."""
        new = self._is_new()
        if new:
            with disk_errors(self.path):
                _append(self._file, dump_row(row))
        return new

    def reject(self, row: Row, reason: str) -> bool:
        """Record a skipped row with the reason; return False if it is recorded already."""
        number, new = self._number, self._is_new()
        if new:
            image = row.get("image")
            place = image if isinstance(image, str) or ".tar#" in str(image) else None
            place = image.image or None if isinstance(image, RejectedImage) else place
            skipped = {"row": number, "key": row.get("key"), "image": place}
            skipped |= {"code": row["code"]} if get_error(row) and row.get("code") else {}
            line = dump_row(skipped | {"reason": reason})
            with disk_errors(self.rejects), self.rejects.open("ab", buffering=0) as file:
                _append(file, line)
                os.fsync(file.fileno())
        return new

    def _is_new(self) -> bool:
        self._number += 1
        return self._number > self.done


def _append(file: IO[bytes], line: str) -> None:
    data = memoryview(line.encode() + b"\n")
    while data:  # a full disk may accept a part of the line first
        data = data[file.write(data) :]


def _open_locked(path: Path) -> IO[bytes]:
    """Open a file for appending and lock it, as far as the file system supports locks."""
    file = path.open("ab", buffering=0)
    try:
        lock_file(file, path, "choose another file")
    except LuminaError:
        file.close()
        raise
    return file


def _has_line(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def _count_lines(path: Path) -> int:
    """Return the number of lines of a file, 0 without a file; truncate a torn last line."""
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


def _parse(text: str | bytes) -> Row:
    try:
        row = parse_json(text)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _identity(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ADDED}


def _describe_row(row: Row) -> str:
    return str(row.get("image") or row.get("key") or "nothing")[:200] if row else "nothing"


def _format_setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str("none" if value is None else value)

"""Rows on stdout; tables, progress bars and messages on stderr. No other module handles terminals."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import typer

from lumina_cli.cli.tables import build_table, fit_columns, format_listing, format_value, to_one_line
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import jsonl as jsonl

ROW_FILES = (".jsonl", ".ndjson", ".csv", ".txt")
MAX_TABLE_ROWS = 40
MAX_COLUMN_NAME = 60  # characters
SPEED_WINDOW = 600  # seconds over which the speed is averaged: a row of training may take a minute

_bars: list = []  # the rich progress display on screen, if any: there can be only one
interrupts: list[bool] = []  # not empty once Ctrl-C was pressed


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed but its exception was lost.

    Python discards an exception that is raised while a destructor runs.
    """
    if interrupts:
        raise KeyboardInterrupt


# Rows in


def read_rows(arguments: list[str] | None, key: str) -> Iterator[dict]:
    """Yield rows from words, files of rows (.jsonl, .csv, .txt) or stdin ("-", or a pipe without arguments).

    Each row has a value for `key`; a word, or a line of plain text, is that value. A word that is the path of
    a file is never that value.

    Raises:
        UsageError: without arguments, if stdin is a terminal.
        LuminaError: if a file does not exist or has another format, a row has no `key`, or nothing is found.
    """
    if not arguments:
        if sys.stdin.isatty():
            raise UsageError(f"no {key} given: write one in quotes, name a file of rows, or pipe rows in")
        arguments = ["-"]
    return _read_arguments(arguments, key)


def count_rows(arguments: list[str] | None, key: str) -> int | None:
    """Return the number of rows that `read_rows` will yield, with its errors; None if it reads stdin."""
    return sum(1 for _ in _read_arguments(arguments, key)) if arguments and "-" not in arguments else None


def _read_arguments(arguments: list[str], key: str) -> Iterator[dict]:
    count = 0
    for word in arguments:
        for row in _read_argument(word, key):
            count += 1
            yield row
    if not count:
        places = ", ".join("stdin" if word == "-" else word for word in arguments)
        raise LuminaError(f"no {key}s {'on' if places == 'stdin' else 'in'} {places}")


def _read_argument(word: str, key: str) -> Iterator[dict]:
    if word == "-":
        yield from jsonl.read_rows(getattr(sys.stdin, "buffer", sys.stdin), key)
    elif not word.strip():
        raise LuminaError(f"the {key} is empty")
    elif _is_row_file(word):
        yield from jsonl.read_rows(word, key)
    elif os.path.lexists(word):
        kind = "folder" if os.path.isdir(word) else "file"
        raise LuminaError(
            f"{word} is a {kind}, not a {key}, and not a file of {key}s ({', '.join(ROW_FILES)}); to use the "
            f"word itself, pipe it to '-'"
        )
    else:
        yield {key: word}


def _is_row_file(word: str) -> bool:
    """Whether a word ends like a file of rows and either exists or has no space, so must be a file name."""
    spaced = any(letter.isspace() for letter in Path(word).name)
    return word.lower().endswith(ROW_FILES) and (not spaced or os.path.isfile(word))


# Rows out


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


class ProgressCounter:
    """Moves a progress bar by fractions of items.

    Pass it to `write_rows` as its `total` and call it from the code that produces the rows.
    """

    def __init__(self, total: int | None = None):
        self.total, self.move = total, None

    def __call__(self, done: float, skipped: int = 0, total: int | None = None) -> None:
        """Show that `done` items are finished; `skipped` ones needed no work and leave the total.

        A `total` replaces the expected one.
        """
        self.total = self.total if total is None else total
        if self.move:
            self.move(completed=done, total=None if self.total is None else self.total - skipped)


def write_rows(
    rows: Iterable[dict],
    json: bool | None = None,
    label: str = "rows",
    total: int | ProgressCounter | None = None,
    describe: Callable[[dict], tuple] | None = None,
) -> int:
    """Write rows as they arrive: JSON Lines on stdout in a pipe or with `json`, else a table on stderr.

    A terminal also shows a progress bar. With `describe` (see `track_progress`) each row is printed as a line
    above the bar instead of in a table at the end. A closed pipe ends the command without an error.

        returns   the number of rows
    """
    json = json or not sys.stdout.isatty()
    shown: list[dict] = []
    count = 0
    rows = _make_closable(iter(rows))
    tracked = rows if json and sys.stdout.isatty() else track_progress(rows, label, total, describe)
    try:
        with contextlib.closing(rows), contextlib.closing(tracked):  # the producer may have to save its state
            for row in tracked:
                check_interrupted()
                count += 1
                if json:
                    write_line(jsonl.dump_row(row))
                elif describe:
                    write_note(", ".join(f"{name} {format_value(value)}" for name, value in row.items()))
                elif count <= MAX_TABLE_ROWS:
                    shown.append(row)
    finally:
        if shown:
            print_table(shown, more=count - len(shown))
    return count


def _make_closable(rows: Iterator) -> Iterator:
    return rows if hasattr(rows, "close") else (row for row in rows)


def write_line(text: str) -> None:
    """Write one line to stdout and flush; end the command without an error if the pipe is closed."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        raise typer.Exit(0) from None


def silence_stdout() -> None:
    """Redirect stdout to the null device, so that the flush at exit does not fail on the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Messages and progress


def write_note(text: str) -> None:
    """Write one line to stderr, above the progress bar if there is one."""
    if _bars:
        _bars[0].console.print(to_one_line(text), markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(to_one_line(text) + "\n")
        sys.stderr.flush()


def track_progress(
    items: Iterable,
    label: str,
    total: int | ProgressCounter | None = None,
    describe: Callable | None = None,
) -> Iterator:
    """Yield `items` unchanged and count them in a progress bar if stderr is a terminal; bars may be nested.

    `describe(item)` returns (done, total, label) of an item's progress; None keeps the previous value.
    """
    if not sys.stderr.isatty():
        for item in items:
            check_interrupted()
            yield item
        return
    counter = total if isinstance(total, ProgressCounter) else None
    with _open_bar() as bar:
        task = bar.add_task(to_one_line(label), total=counter.total if counter else total)
        if counter:
            counter.move = partial(bar.update, task)
        try:
            for item in items:
                check_interrupted()
                if describe:
                    done, size, text = describe(item)
                    bar.update(task, completed=done, total=size, description=text and to_one_line(text))
                yield item
                if not describe and not counter:
                    bar.advance(task)
        finally:
            if counter:
                counter.move = None
            bar.remove_task(task)


@contextlib.contextmanager
def _open_bar():
    if _bars:
        yield _bars[0]
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, speed_estimate_period=SPEED_WINDOW
    ) as bar:
        _bars.append(bar)
        try:
            yield bar
        finally:
            _bars.clear()


def print_table(
    rows: list[dict], title: str | None = None, more: int = 0, optional: tuple[str, ...] = ()
) -> None:
    """Print rows on stderr as a table, or as one line per key if the terminal is too narrow.

    `optional` columns are dropped first, in their order. Column names may come from other people's files, so
    they are shown like values: on one line, control characters escaped, cut off if long.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    rows = [{format_value(str(name), MAX_COLUMN_NAME): value for name, value in row.items()} for row in rows]
    widths = fit_columns(rows, console.width)
    dropped = []
    for name in optional:
        if widths is None and any(name in row for row in rows):
            dropped.append(name)
            rows = [{key: value for key, value in row.items() if key != name} for row in rows]
            widths = fit_columns(rows, console.width)
    if widths is None and len(rows[0]) > 2:
        for row in rows:
            console.print(Text(format_listing(row, console.width) + "\n"), soft_wrap=True)
    else:
        console.print(build_table(rows, widths or dict.fromkeys(rows[0], console.width // 2 - 1), title))
    if dropped:
        write_note(f"terminal too narrow for {', '.join(dropped)}; --json writes all columns")
    if more:
        write_note(f"... and {more} more rows; --json writes all of them")

"""Rows on stdout; tables, progress bars and messages on stderr. No other module handles terminals."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import typer

from lumina_cli.cli.tables import MAX_CELL, format_row, lay_out_rows, to_one_line
from lumina_cli.core.io import jsonl as jsonl
from lumina_cli.core.limits import shorten
from lumina_cli.core.secrets import mask_secrets

MAX_TABLE_ROWS = 40
WIDE = 10_000  # characters of a table with --wide
SPEED_WINDOW = 600  # seconds over which the speed is averaged: a row of training may take a minute

_bars: list = []  # the rich progress display on screen, if any: there can be only one
_status: list[str] = []  # the status line on screen, if any
_notes: Counter[str] | None = None  # how often each note of this command was written
wide = False  # set by --wide: tables may be wider than the terminal
interrupts: list[bool] = []  # not empty once Ctrl-C was pressed
hints: list[str] = []  # how to resume the interrupted command, if it is known


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed but its exception was lost.

    Python discards an exception that is raised while a destructor runs.
    """
    if interrupts:
        raise KeyboardInterrupt


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


class ProgressCounter:
    """Moves a progress bar by fractions of items.

    Pass it to `write_rows` as its `total` and call it from the code that produces the rows.
    """

    def __init__(self, total: int | None = None):
        self.total, self.move = total, None

    def __call__(
        self,
        done: float,
        skipped: int = 0,
        total: int | None = None,
        label: str | None = None,
        ahead: float = 0,
    ) -> None:
        """Show that `done` items are finished; `skipped` ones needed no work and leave the total.

        A `total` replaces the expected one, a `label` that of the bar. `ahead` is the work on unfinished
        items, in items: it moves the bar and counts for the time left, but not as items.
        """
        self.total = self.total if total is None else total
        if self.move:
            total = None if self.total is None else self.total - skipped
            label = label and to_one_line(label)
            self.move(completed=done + ahead, total=total, description=label, whole=done)


def write_rows(
    rows: Iterable[dict],
    json: bool | None = None,
    label: str = "rows",
    total: int | ProgressCounter | None = None,
    describe: Callable[[dict], tuple] | None = None,
) -> int:
    """Write rows as they arrive, as JSON Lines on stdout or as a table on stderr, and count them.

    A terminal also shows a progress bar. With `describe` (see `track_progress`) each row is printed as a line
    above the bar instead of in a table at the end. A closed pipe ends the command without an error.
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
                    _write_message(format_row(row))
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
    _clear_status()
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


def show_status(text: str) -> None:
    """Show a line on stderr until the next output if stderr is a terminal: loading takes seconds."""
    if sys.stderr.isatty() and not _bars:
        _clear_status()
        _status.append(text)
        sys.stderr.write(to_one_line(text))
        sys.stderr.flush()


def _clear_status() -> None:
    if _status:
        _status.clear()
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def write_note(text: str) -> None:
    """Write one line to stderr, above the progress bar; in `single_notes`, only the first of equal ones."""
    line = to_one_line(shorten(mask_secrets(text)))
    if _notes is not None:
        _notes[line] += 1
    if _notes is None or _notes[line] == 1:
        _write_message(line)


@contextlib.contextmanager
def single_notes() -> Iterator[None]:
    """Write equal notes once, and at the end how often each was repeated."""
    global _notes
    _notes = counts = Counter()
    try:
        yield
    finally:
        _notes = None
        _clear_status()
        for line, count in counts.items():
            if count > 1:
                _write_message(f"{count} times: {line}")


def _write_message(line: str) -> None:
    if _bars:
        _bars[0].console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        _clear_status()
        sys.stderr.write(line + "\n")
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
    _clear_status()
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class WholeItemsColumn(MofNCompleteColumn):
        """Counts finished items, without the work on unfinished ones that the bar includes."""

        def render(self, task: Task) -> Text:
            total = "?" if task.total is None else int(task.total)
            return Text(f"{int(task.fields.get('whole', task.completed))}/{total}", style="progress.download")

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        WholeItemsColumn(),
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

    `optional` columns are dropped first, in their order. With --wide nothing is cut or dropped.
    """
    from rich.console import Console

    _clear_status()
    console = Console(stderr=True, width=WIDE if wide else None)
    shown, dropped = lay_out_rows(rows, console.width, WIDE if wide else MAX_CELL, title, optional)
    for each in shown:
        console.print(each, soft_wrap=True)
    if dropped:
        write_note(f"terminal too narrow for {', '.join(dropped)}; --wide shows all columns")
    if more:
        write_note(f"... and {more} more rows; --json writes all of them")

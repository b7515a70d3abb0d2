"""What a person or a pipe sees: rows on stdout, talk on stderr. Nothing else knows about terminals."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import typer

from lumina_cli.cli.tables import fit, grid, listing, one_line, words
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import jsonl as jsonl

ROW_FILES = (".jsonl", ".ndjson", ".csv", ".txt")
TABLE_ROWS = 40  # of a longer table only the first ones are shown
NAME = 60  # characters of a column's name
PACE = 600  # seconds whose speed gives the time left: a row of training may take a minute

_bars: list = []  # the rich progress on screen, if any: there can be only one
asked: list[bool] = []  # something in it: Ctrl-C was pressed


def check_interrupted() -> None:
    """Stop where Ctrl-C was pressed and its exception lost: Python drops one that meets a destructor."""
    if asked:
        raise KeyboardInterrupt


def read_rows(arguments: list[str] | None, key: str) -> Iterator[dict]:
    """Yield rows from words, from files of rows (.jsonl, .csv, .txt) among them, or stdin ("-", or piped).

    Each row has a value for `key`; a word, or a line of plain text, is that value.
    """
    if not arguments:
        if sys.stdin.isatty():
            raise UsageError(f"no {key} given; write one in quotes, name a file of rows, or pipe rows in")
        arguments = ["-"]
    return _read(arguments, key)


def count_rows(arguments: list[str] | None, key: str) -> int | None:
    """Return how many rows `read_rows` will yield, with its errors; None where stdin is among the sources."""
    return sum(1 for _ in _read(arguments, key)) if arguments and "-" not in arguments else None


def is_terminal() -> bool:
    """Whether somebody reads stdout."""
    return sys.stdout.isatty()


class Meter:
    """Moves a bar by parts of items: give it to `write_rows` as its `total`, and call it meanwhile."""

    def __init__(self, total: int | None = None):
        self.total, self.move = total, None

    def __call__(self, done: float, there: int = 0, total: int | None = None) -> None:
        """Show that `done` items are done; `there` others needed no work, and count neither way.

        A `total` stands for the one that was expected before.
        """
        self.total = self.total if total is None else total
        if self.move:
            self.move(completed=done, total=None if self.total is None else self.total - there)


def _read(arguments: list[str], key: str) -> Iterator[dict]:
    count = 0
    for word in arguments:
        for row in _rows_of(word, key):
            count += 1
            yield row
    if not count:
        places = ("stdin" if word == "-" else word for word in arguments)
        raise LuminaError(f"nothing to do: no {key} in {' '.join(places)}")


def _rows_of(word: str, key: str) -> Iterator[dict]:
    if word == "-":
        yield from jsonl.read_rows(getattr(sys.stdin, "buffer", sys.stdin), key)
    elif _names_file(word):
        yield from jsonl.read_rows(word, key)
    elif not word.strip():
        raise LuminaError(f"the {key} is empty")
    else:
        yield {key: word}


def _names_file(word: str) -> bool:
    """Whether a word ends as files of rows do, and is one, or has no space and so must be a file's name."""
    spaced = any(letter.isspace() for letter in Path(word).name)
    return word.endswith(ROW_FILES) and (not spaced or os.path.isfile(word))


def write_rows(
    rows: Iterable[dict],
    json: bool | None = None,
    label: str = "rows",
    total: int | Meter | None = None,
    describe: Callable[[dict], tuple] | None = None,
) -> int:
    """Write rows as they come: JSONL on stdout if it is no terminal or with `json`, else a table on stderr.

    Shows a progress bar on a terminal; with `describe` (see `progress`) it tells more, and each row is a line
    above it instead of a table at the end. Returns the number of rows; ends the command quietly when the
    pipe closes.
    """
    json = json or not sys.stdout.isatty()
    shown: list[dict] = []
    count = 0
    rows = _closable(iter(rows))
    watched = progress(rows, label, total, describe) if not (json and sys.stdout.isatty()) else rows
    try:
        with contextlib.closing(rows), contextlib.closing(watched):  # whoever makes the rows may have to save
            for row in watched:
                check_interrupted()
                count += 1
                if json:
                    write_line(jsonl.dump_row(row))
                elif describe:
                    note(", ".join(f"{name} {words(value)}" for name, value in row.items()))
                elif count <= TABLE_ROWS:
                    shown.append(row)
    finally:
        if shown:
            table(shown, more=count - len(shown))
    return count


def _closable(rows: Iterator) -> Iterator:
    return rows if hasattr(rows, "close") else (row for row in rows)


def write_line(text: str) -> None:
    """Write one line to stdout at once; a closed pipe ends the command quietly, as `| head` expects."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        raise typer.Exit(0) from None


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not meet the closed pipe again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """Say one line on stderr."""
    if _bars:
        _bars[0].console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(one_line(text) + "\n")
        sys.stderr.flush()


def progress(
    items: Iterable, label: str, total: int | Meter | None = None, describe: Callable | None = None
) -> Iterator:
    """Yield `items` unchanged while a bar counts them, if stderr is a terminal; bars may be nested.

    `describe(item)` says how far an item is, (done, total, label), where None leaves what was shown before.
    """
    if not sys.stderr.isatty():
        for item in items:
            check_interrupted()
            yield item
        return
    meter = total if isinstance(total, Meter) else None
    with _bar() as bar:
        task = bar.add_task(one_line(label), total=meter.total if meter else total)
        if meter:
            meter.move = partial(bar.update, task)
        try:
            for item in items:
                check_interrupted()
                if describe:
                    done, of, text = describe(item)
                    bar.update(task, completed=done, total=of, description=text and one_line(text))
                yield item
                if not describe and not meter:
                    bar.advance(task)
        finally:
            if meter:
                meter.move = None
            bar.remove_task(task)


@contextlib.contextmanager
def _bar():
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
    ]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, speed_estimate_period=PACE
    ) as bar:
        _bars.append(bar)
        try:
            yield bar
        finally:
            _bars.clear()


def table(rows: list[dict], title: str | None = None, more: int = 0, spare: tuple[str, ...] = ()) -> None:
    """Show rows on stderr as a table, or one key a line where the terminal is too narrow for it.

    Before that the columns of `spare` are left out, the first one first. Names, which may be other people's,
    are shown as values are: on one line, without control characters, cut where they are long.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    rows = [{words(str(name), NAME): value for name, value in row.items()} for row in rows]
    widths = fit(rows, console.width)
    dropped = []
    for name in spare:
        if widths is None and any(name in row for row in rows):
            dropped.append(name)
            rows = [{key: value for key, value in row.items() if key != name} for row in rows]
            widths = fit(rows, console.width)
    if widths is None and len(rows[0]) > 2:
        for row in rows:
            console.print(Text(listing(row, console.width) + "\n"), soft_wrap=True)
    else:
        console.print(grid(rows, widths or dict.fromkeys(rows[0], console.width // 2 - 1), title))
    if dropped:
        note(f"left out for want of room: {', '.join(dropped)}; --json writes all")
    if more:
        note(f"... and {more} more; --json writes them all")

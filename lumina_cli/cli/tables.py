"""Values and rows as readable text: tables and lists that fit a terminal of a given width."""

from collections.abc import Iterator

MIN_COLUMN = 14  # characters; if columns of this width do not fit, rows are shown as lists
MAX_CELL = 120  # characters
MIN_PROSE = 40  # characters above which a nested value counts as prose
COLUMN_GAP = 2  # characters
MAX_TRANSPOSED = 6  # rows of a table that is shown with one column per row
MAX_COLUMN_NAME = 60  # characters
PATH_KEYS = ("image", "file", "path", "out", "page", "folder", "from", "init", "mask", "dest", "source")


def to_one_line(text: object) -> str:
    """Return `text` on one line with control characters escaped: file names may contain terminal commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))


def format_value(value: object, limit: int = MAX_CELL) -> str:
    """Return a value as text of at most `limit` characters; nested values as "en.short: a red ball, ..."."""
    text = to_one_line(_format_whole(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _format_whole(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, dict):
        leaves = [leaf for leaf in _iterate_leaves(value) if leaf[1] != "-"]
        texts = {text for _, text in leaves} or {""}
        if len(leaves) > len(texts) == 1 and leaves[0][1][:1].isalpha():  # e.g. the writer of each caption
            return f"{leaves[0][1]} (all {len(leaves)})"
        if max(map(len, texts)) > MIN_PROSE:  # captions: the shortest first, the others may be cut off
            groups = list(dict.fromkeys(name.split(".")[0] for name, _ in leaves))
            leaves.sort(key=lambda leaf: (groups.index(leaf[0].split(".")[0]), len(leaf[1])))
        return ", ".join(f"{name}: {text}" for name, text in leaves) or "-"
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(each, dict) for each in value) else ", ").join(
            map(_format_whole, value)
        )
    return "in memory" if hasattr(value, "getpixel") else str(value)


def _iterate_leaves(value: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of every value nested in a dict."""
    for name, each in value.items():
        if isinstance(each, dict) and each:
            yield from _iterate_leaves(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _format_whole(each)


def format_row(row: dict) -> str:
    """Return a row on one line, as "name value, name value"."""
    return ", ".join(f"{to_one_line(name)} {format_value(value)}" for name, value in row.items())


def is_path(name: str, value: object) -> bool:
    """Whether a value is a path or a URL, which people copy from tables."""
    if not isinstance(value, str) or not ("/" in value or "\\" in value):
        return False
    return name in PATH_KEYS or not any(map(str.isspace, value))


def lay_out_rows(
    rows: list[dict], width: int, limit: int, title: str | None = None, optional: tuple[str, ...] = ()
) -> tuple[list, list[str]]:
    """Return (rich objects that show the rows in `width` characters, names of columns that were dropped).

    A table; if that is too wide, one without the items that all rows share, or one with a column per row, or
    a list of lines for each row. Paths are never cut or broken. Column names may come from other people's
    files, so they are shown like values: on one line, control characters escaped, cut off if long.

        limit      characters of a value, at most
        optional   columns that may be dropped, in their order
    """
    from rich.text import Text

    rows = [{format_value(str(name), MAX_COLUMN_NAME): value for name, value in row.items()} for row in rows]
    widths = fit_columns(rows, width, limit)
    dropped = []
    for name in optional:
        if widths is None and any(name in row for row in rows):
            dropped.append(name)
            rows = [{key: value for key, value in row.items() if key != name} for row in rows]
            widths = fit_columns(rows, width, limit)
    shown = []
    if widths is None and len(rows) > 1:
        same, others = split_constant(rows)
        if same and others[0] and (widths := fit_columns(others, width, limit)):
            shown, rows = [Text(f"all rows: {format_row(same)}")], others
        elif len(rows) <= MAX_TRANSPOSED and (widths := fit_columns(transpose(rows), width, limit)):
            rows = transpose(rows)
    if widths is None and len(rows[0]) > 2:
        return [Text(format_listing(row, width) + "\n") for row in rows], dropped
    widths = widths or dict.fromkeys(rows[0], width // 2 - 1)
    return [*shown, build_table(rows, widths, title, limit)], dropped


def split_constant(rows: list[dict]) -> tuple[dict, list[dict]]:
    """Return (the items that all rows have in common, the rows without them)."""
    same = {
        name: value
        for name, value in rows[0].items()
        if all(name in row and row[name] == value for row in rows) and not is_path(name, value)
    }
    return same, [{name: value for name, value in row.items() if name not in same} for row in rows]


def transpose(rows: list[dict]) -> list[dict]:
    """Return a table with one column per row, headed by the row's first value or its number, too."""
    first = next(iter(rows[0]))
    heads = [format_value(row.get(first), MAX_COLUMN_NAME) for row in rows]
    if len(set(heads)) < len(rows):
        heads = [f"{number}: {head}" for number, head in enumerate(heads, 1)]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != first]
    return [
        {first: name, **{head: row.get(name) for head, row in zip(heads, rows, strict=True)}}
        for name in names
    ]


def fit_columns(rows: list[dict], width: int, limit: int = MAX_CELL) -> dict[str, int] | None:
    """Return column widths that show the rows in `width` characters, or None if they do not fit.

    The widest columns shrink first, down to MIN_COLUMN characters or the longest word of their heading.
    Columns of paths do not shrink.

        limit   characters of a value, at most
    """
    from rich.cells import cell_len

    columns = dict.fromkeys(str(name) for row in rows for name in row)
    widths, minimum = {}, {}
    for name in columns:
        heading = max(map(cell_len, name.replace("_", " ").split()), default=1)
        values = [row[name] for row in rows if name in row]
        longest = max(cell_len(format_cell(name, value, limit)) for value in values)
        widths[name] = max(cell_len(name), longest)
        minimum[name] = max(
            heading, longest if any(is_path(name, value) for value in values) else min(MIN_COLUMN, longest)
        )
    available = width - COLUMN_GAP * (len(columns) - 1)
    if sum(minimum.values()) > available:
        return None
    while sum(widths.values()) > available:
        name = max((name for name in columns if widths[name] > minimum[name]), key=widths.__getitem__)
        widths[name] -= 1
    return widths


def format_cell(name: str, value: object, limit: int = MAX_CELL) -> str:
    """Return the value of a column as text of at most `limit` characters; a path whole."""
    return to_one_line(value) if is_path(name, value) else format_value(value, limit)


def build_table(rows: list[dict], widths: dict[str, int], title: str | None = None, limit: int = MAX_CELL):
    """Return rows as a rich table of these widths; nested values are cut off, other text is folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=None, header_style="bold", pad_edge=False, padding=(0, COLUMN_GAP, 0, 0))
    for name, wide in widths.items():
        values = [row.get(name) for row in rows]
        numeric = all(value is None or isinstance(value, int | float) for value in values)
        justify = "right" if numeric and any(value is not None for value in values) else "left"
        cut = any(isinstance(value, dict | list) for value in values)
        head = Text(name if len(name) <= wide else name.replace("_", " "), justify=justify)
        table.add_column(
            head, width=wide, justify=justify, no_wrap=cut, overflow="ellipsis" if cut else "fold"
        )
    for row in rows:
        table.add_row(*(Text(format_cell(name, row.get(name), limit)) for name in widths))
    return table


def format_listing(row: dict, width: int) -> str:
    """Return a row as one line per key; nested values are cut off at `width` characters."""
    lines = []
    for name, value in row.items():
        limit = max(MIN_COLUMN, width - len(name) - 2) if isinstance(value, dict) else MAX_CELL
        lines.append(f"{name}: {format_cell(name, value, limit)}")
    return "\n".join(lines)

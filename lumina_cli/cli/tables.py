"""Values and rows as readable text: tables and lists that fit a terminal of a given width."""

from collections.abc import Iterator

MIN_COLUMN = 14  # characters; if columns of this width do not fit, rows are shown as lists
MAX_CELL = 120  # characters
MIN_PROSE = 40  # characters above which a nested value counts as prose
COLUMN_GAP = 2  # characters


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


def fit_columns(rows: list[dict], width: int) -> dict[str, int] | None:
    """Return column widths that show the rows in `width` characters, or None if they do not fit.

    The widest columns shrink first, down to MIN_COLUMN characters or the longest word of their heading.
    """
    from rich.cells import cell_len

    columns = dict.fromkeys(str(name) for row in rows for name in row)
    widths, minimum = {}, {}
    for name in columns:
        heading = max(map(cell_len, name.replace("_", " ").split()), default=1)
        longest = max(cell_len(format_value(row[name])) for row in rows if name in row)
        widths[name] = max(cell_len(name), longest)
        minimum[name] = max(heading, min(MIN_COLUMN, longest))
    available = width - COLUMN_GAP * (len(columns) - 1)
    if sum(minimum.values()) > available:
        return None
    while sum(widths.values()) > available:
        name = max((name for name in columns if widths[name] > minimum[name]), key=widths.__getitem__)
        widths[name] -= 1
    return widths


def build_table(rows: list[dict], widths: dict[str, int], title: str | None = None):
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
        table.add_row(*(Text(format_value(row.get(name))) for name in widths))
    return table


def format_listing(row: dict, width: int) -> str:
    """Return a row as one line per key; nested values are cut off at `width` characters."""
    lines = []
    for name, value in row.items():
        limit = max(MIN_COLUMN, width - len(name) - 2) if isinstance(value, dict) else MAX_CELL
        lines.append(f"{name}: {format_value(value, limit)}")
    return "\n".join(lines)

"""What a value is in words, and rows as a table of a given width; for people, never for a pipe."""

from collections.abc import Iterator

NARROW = 14  # characters that a column may need at least; where they do not fit, rows are lists
LONGEST = 120  # characters of a cell
TEXT = 40  # characters above which a nested value is taken for prose
GAP = 2  # characters between columns


def one_line(text: object) -> str:
    """Return `text` on one line, without the control characters that a file name may carry to a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))


def words(value: object, most: int = LONGEST) -> str:
    """Return a value in words, `most` characters at most: nested ones as "en.short: a red ball, ..."."""
    text = one_line(_format_value(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def _format_value(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, dict):
        leaves = [leaf for leaf in _leaves(value) if leaf[1] != "-"]
        said = {text for _, text in leaves} or {""}
        if len(leaves) > len(said) == 1 and leaves[0][1][:1].isalpha():  # who wrote each caption, say
            return f"{leaves[0][1]} (all {len(leaves)})"
        if max(map(len, said)) > TEXT:  # captions: a short one tells most in little room
            groups = list(dict.fromkeys(name.split(".")[0] for name, _ in leaves))
            leaves.sort(key=lambda leaf: (groups.index(leaf[0].split(".")[0]), len(leaf[1])))
        return ", ".join(f"{name}: {text}" for name, text in leaves) or "-"
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(each, dict) for each in value) else ", ").join(
            map(_format_value, value)
        )
    return "in memory" if hasattr(value, "getpixel") else str(value)


def _leaves(value: dict, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, words) of all that is nested in a dict."""
    for name, each in value.items():
        if isinstance(each, dict) and each:
            yield from _leaves(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", _format_value(each)


def fit(rows: list[dict], width: int) -> dict[str, int] | None:
    """Return the width of each column that shows rows in `width` characters; None where they do not fit.

    The widest columns give way first, down to NARROW characters or the longest word of their heading.
    """
    from rich.cells import cell_len

    columns = dict.fromkeys(str(name) for row in rows for name in row)
    natural, least = {}, {}
    for name in columns:
        heading = max(map(cell_len, name.replace("_", " ").split()), default=1)
        longest = max(cell_len(words(row[name])) for row in rows if name in row)
        natural[name] = max(cell_len(name), longest)
        least[name] = max(heading, min(NARROW, longest))
    room = width - GAP * (len(columns) - 1)
    if sum(least.values()) > room:
        return None
    while sum(natural.values()) > room:
        name = max((name for name in columns if natural[name] > least[name]), key=natural.__getitem__)
        natural[name] -= 1
    return natural


def grid(rows: list[dict], widths: dict[str, int], title: str | None = None):
    """Return rows as a table of rich, with columns of these widths; long text is cut, names are folded."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    for name, wide in widths.items():
        values = [row.get(name) for row in rows]
        number = all(value is None or isinstance(value, int | float) for value in values)
        justify = "right" if number and any(value is not None for value in values) else "left"
        cut = any(isinstance(value, dict | list) for value in values)
        head = Text(name if len(name) <= wide else name.replace("_", " "), justify=justify)
        shown.add_column(
            head, width=wide, justify=justify, no_wrap=cut, overflow="ellipsis" if cut else "fold"
        )
    for row in rows:
        shown.add_row(*(Text(words(row.get(name))) for name in widths))
    return shown


def listing(row: dict, width: int) -> str:
    """Return a row as a line a key, nested values cut to `width` characters."""
    return "\n".join(
        f"{name}: {words(value, max(NARROW, width - len(name) - 2) if isinstance(value, dict) else LONGEST)}"
        for name, value in row.items()
    )

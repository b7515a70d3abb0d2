"""`lumina sample --explain`: the plan, its calls and the texts, as rows or as a page."""

from collections.abc import Iterable

from lumina_cli.cli import output

PROJECTED = ("parallel", "momentum", "push_limit")  # settings that only guide=apg reads


def show(rows: Iterable[dict], json: bool) -> None:
    """Write rows of `explain_rows` as they are to a pipe, and to a terminal as a page."""
    if json or not output.is_terminal():
        output.write_rows(rows, json=True)
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    calls: list[dict] = []
    for row in rows:
        if row["about"] == "plan":
            _plan(console, row)
        elif row["about"] == "call":
            calls.append(row)
        else:
            _calls(console, calls)
            _text(console, row)
    _calls(console, calls)


def _plan(console, row: dict) -> None:
    settings = row["settings"]
    if row["model_reason"]:
        output.note(row["model_reason"])
    preset = f"preset {row['preset']}" if row["preset"] else "the model's own plan"
    words = f"{row['model']}, {row['size']} ({row['image_tokens']} image tokens), {preset}: {row['calls']} "
    words += f"network calls a picture, {row['guided_calls']} of them guided, {row['network_rows']} rows"
    if settings["cache"]:
        words += f" at most (cache {settings['cache']})"
    if "edit" in row:
        words += f"; it starts from {row['edit']['init']} at strength {row['edit']['strength']:g}"
    console.print(words + "\n", markup=False)
    hidden = () if settings["guide"] == "apg" else PROJECTED
    hidden += () if settings["renorm"] else ("renorm_of",)
    shown = {name: value for name, value in settings.items() if name not in hidden}
    lines = [(name, "off" if value is None else value, row["from"][name]) for name, value in shown.items()]
    prompt = "with" if row["negative_system"] else "without"
    lines += [("system", row["system"], ""), ("negative", f"{prompt} the system prompt", "")]
    _grid(console, ("setting", "value", "from"), lines)


def _calls(console, calls: list[dict]) -> None:
    if calls:
        lines = [
            (row["call"], row["step"], f"{row['t']:.5f}", f"{row['sigma']:.5f}", _guided(row), row["rows"])
            for row in calls
        ]
        _grid(console, ("call", "step", "t", "sigma", "guided", "rows"), lines, right=True)
        calls.clear()


def _guided(row: dict) -> str:
    return "yes" if row["guided"] else "-"


def _grid(console, names: tuple[str, ...], lines: list[tuple], right: bool = False) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(output.one_line(cell)) for cell in line))
    console.print(grid)
    console.print()


def _text(console, row: dict) -> None:
    from rich.padding import Padding
    from rich.text import Text

    count = f"{row['tokens']} token{'s' * (row['tokens'] != 1)}"
    size = f"{row['size']}, " if row["branch"] == "prompt" else ""
    title = f"row {row['row']}, {size}{row['branch']}, {count}"
    if row["dropped"]:
        title += f", the last {row['dropped']} not read"
    console.print(Text(title, style="bold"))
    lines = [Text(output.one_line(row["text"]) or "(empty: the first token alone)")]
    if row["unread"]:
        lines.append(Text(f"not read: {output.one_line(row['unread'])}", style="red"))
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2)))

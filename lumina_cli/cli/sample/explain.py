"""`lumina sample --explain`: the plan, the network calls and the prompts, as rows or as a page."""

from collections.abc import Iterable

from lumina_cli.cli import output

APG_SETTINGS = ("parallel", "momentum", "push_limit")  # unused unless guide=apg


def print_explanation(rows: Iterable[dict], json: bool) -> None:
    """Write the rows of `explain_rows`: unchanged to a pipe, as a page to a terminal."""
    if json or not output.is_terminal():
        output.write_rows(rows, json=True)
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    calls: list[dict] = []
    for row in rows:
        if row["about"] == "plan":
            _print_plan(console, row)
        elif row["about"] == "call":
            calls.append(row)
        else:
            _print_calls(console, calls)
            _print_prompt(console, row)
    _print_calls(console, calls)


def _print_plan(console, row: dict) -> None:
    settings = row["settings"]
    if row["model_reason"]:
        output.write_note(row["model_reason"])
    preset = f"preset {row['preset']}" if row["preset"] else "the model's own plan"
    text = f"{row['model']}, {row['size']} ({row['image_tokens']} image tokens), {preset}: {row['calls']} "
    text += f"network calls per image ({row['guided_calls']} guided), {row['network_rows']} batch entries"
    if settings["cache"]:
        text += f" at most (cache {settings['cache']})"
    if "edit" in row:
        text += f"; starts from {row['edit']['init']} at strength {row['edit']['strength']:g}"
    console.print(text + "\n", markup=False)
    hidden = () if settings["guide"] == "apg" else APG_SETTINGS
    hidden += () if settings["renorm"] else ("renorm_of",)
    shown = {name: value for name, value in settings.items() if name not in hidden}
    lines = [(name, "off" if value is None else value, row["from"][name]) for name, value in shown.items()]
    prompt = "with" if row["negative_system"] else "without"
    lines += [("system", row["system"], ""), ("negative", f"{prompt} the system prompt", "")]
    _print_columns(console, ("setting", "value", "from"), lines)


def _print_calls(console, calls: list[dict]) -> None:
    if calls:
        lines = [
            (row["call"], row["step"], f"{row['t']:.5f}", f"{row['sigma']:.5f}", _guided(row), row["rows"])
            for row in calls
        ]
        _print_columns(console, ("call", "step", "t", "sigma", "guided", "rows"), lines, right=True)
        calls.clear()


def _guided(row: dict) -> str:
    return "yes" if row["guided"] else "-"


def _print_columns(console, names: tuple[str, ...], lines: list[tuple], right: bool = False) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(output.to_one_line(cell)) for cell in line))
    console.print(table)
    console.print()


def _print_prompt(console, row: dict) -> None:
    from rich.padding import Padding
    from rich.text import Text

    count = f"{row['tokens']} token{'s' * (row['tokens'] != 1)}" if row["tokens"] else "tokens not counted"
    size = f"{row['size']}, " if row["branch"] == "prompt" else ""
    title = f"row {row['row']}, {size}{row['branch']}, {count}"
    if row["dropped"]:
        title += f", the last {row['dropped']} cut off"
    console.print(Text(title, style="bold"))
    lines = [Text(output.to_one_line(row["text"]) or "(empty: only the start token)")]
    if row["unread"]:
        lines.append(Text(f"cut off: {output.to_one_line(row['unread'])}", style="red"))
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2)))

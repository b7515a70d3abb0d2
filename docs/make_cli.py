"""Writes docs/cli.md from the commands' own help: `make docs`."""

import os

os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}

from typer.main import get_command

from lumina_cli.cli.app import app


def help_pages(command, name: str, parent=None):
    """Yield (name, help text) of a command and of all below it, in the order of `--help`."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.info_name = name.split()[-1]
    yield name, command.get_help(context)
    if hasattr(command, "list_commands"):
        for word in command.list_commands(context):
            yield from help_pages(command.get_command(context, word), f"{name} {word}", context)


def page() -> str:
    """Return the whole page."""
    parts = ["# The command line\n\nWritten by `make docs` from each command's own `--help`.\n"]
    for name, text in help_pages(get_command(app), "lumina"):
        body = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"## `{name}`\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

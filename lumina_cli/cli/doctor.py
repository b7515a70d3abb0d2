"""`lumina doctor`: what works on this machine."""

from typing import Annotated

import typer

from lumina_cli.cli import output


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Rows on stdout even on a terminal.")] = False,
) -> None:
    """Show what works on this machine, and why not. A row per part out, found by trying it."""
    from lumina_cli.core.doctor import examine
    from lumina_cli.core.models.locate import find_cached

    output.write_rows(examine(find_cached), json, label="parts")

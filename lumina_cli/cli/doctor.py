"""`lumina doctor`: check what works on this machine."""

from lumina_cli.cli import output
from lumina_cli.cli.options import Json


def doctor(json: Json = False) -> None:
    """Check this machine by running each component. Writes one row per component.

    Failed checks have a suggested "fix"; optional components that are not installed have "ok": null.

    Examples:

        lumina doctor
        lumina doctor --json | jq "select(.ok == false)"
    """
    from lumina_cli.core.doctor import run_checks
    from lumina_cli.core.models.hub import find_cached

    output.write_rows(run_checks(find_cached), json, label="checks")

"""Errors that a user can act on, each with its documented exit code."""

from lumina_cli.core.limits import shorten
from lumina_cli.core.secrets import mask_secrets


class LuminaError(Exception):
    """An error that the user can fix; the message is one line that names the remedy.

    Secrets in the message are masked, and a message longer than MAX_MESSAGE loses its middle.
    """

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(shorten(mask_secrets(str(message))))


class UsageError(LuminaError):
    """Wrong usage: an unknown name, option or setting, or an invalid value."""

    exit_code = 2


class TooManyRejects(LuminaError):
    """More invalid inputs than `--max-bad-rate` allows."""

    exit_code = 3


class MissingDependency(LuminaError):
    """Missing hardware or optional dependency; the message names the extra to install."""

    exit_code = 5


class GateFailed(LuminaError):
    """A score or measurement below the required value."""

    exit_code = 6

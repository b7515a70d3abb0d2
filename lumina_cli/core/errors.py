"""Errors that a user can act on, each with its documented exit code."""


class LuminaError(Exception):
    """An error that the user can fix; the message is one line that names the remedy."""

    exit_code = 1


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

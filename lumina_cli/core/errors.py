"""Errors that a user can act on; each carries the exit code that the command line documents."""


class LuminaError(Exception):
    """Something the user can fix; the message is one line that says what to do."""

    exit_code = 1


class UsageError(LuminaError):
    """Wrong usage: an unknown name, option or setting."""

    exit_code = 2


class TooManyRejects(LuminaError):
    """More bad inputs than `--max-bad-rate` allows."""

    exit_code = 3


class MissingDependency(LuminaError):
    """Hardware or an optional dependency is missing; the message names the extra."""

    exit_code = 5


class GateFailed(LuminaError):
    """A score did not reach the gate that was asked for."""

    exit_code = 6

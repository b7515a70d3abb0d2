"""The `lumina` command: commands in pipeline order, exit codes, signals, and errors as one line on stderr."""

import errno
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from importlib import import_module
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from lumina_cli import __version__
from lumina_cli.cli import output
from lumina_cli.cli.help import HelpGroup, VerbApp
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.limits import is_text, shorten
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.secrets import add_url_secrets, mask_secrets

VERBS = ("caption", "shard", "train", "sample", "eval", "bench", "convert", "doctor")
INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM
RESUMABLE = ("lumina caption", "lumina shard", "lumina sample", "lumina eval")
WITH_OUT = ("lumina caption", "lumina eval")  # resumable if they write to --out
# these only read, or finish quickly
NOT_RESUMABLE = {"info", "verify", "stats", "cat", "preview", "select", "compare", "captions", "prompts"}
SIGTERM_WINDOW = 10.0  # seconds in which SIGTERMs count as one: Slurm and torchrun may send one each

_terminations: list[float] = []  # times of the SIGTERMs received


class Verbs(HelpGroup):
    """The top-level group: commands in pipeline order; errors of the operating system as one line."""

    def list_commands(self, ctx) -> list[str]:
        return [name for name in VERBS if name in self.commands]

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except OSError as error:  # caught here: typer exits on EPIPE, whichever pipe broke
            raise LuminaError(_os_error_message(error)) from error


def _os_error_message(error: OSError) -> str:
    """Return the message of an operating system error as one line."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error.filename or reason}"
    return f"{error.filename}: {reason}" if error.filename else reason


HELP = """Caption, shard, train, sample, evaluate and benchmark Lumina-Image 2.0 models.

Commands write data to stdout (JSON Lines when piped) and messages to stderr.

Examples:

    lumina sample "a red car left of a blue ball" --model nano
    lumina shard photos data
    lumina train nano out=runs/first
    lumina shard cat data | lumina caption - > captions.jsonl
"""

app = VerbApp(
    name="lumina",
    cls=Verbs,
    help=HELP,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        output.write_line(f"lumina {__version__}")
        raise typer.Exit


@app.callback()
def accept_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; works anywhere on the line."),
    ] = False,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide", help="Print tables in full, wider than the terminal; works anywhere on the line."
        ),
    ] = False,
) -> None:
    """Accept the options before the command; `run` has removed --debug and --wide."""


for _name in VERBS:
    _module = import_module(f"lumina_cli.cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name)(getattr(_module, _name))


def run(args: list[str]) -> int:
    """Run one command line and return its exit code; write an error as one line to stderr."""
    words = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in words or bool(os.environ.get("LUMINA_DEBUG"))
    output.wide = "--wide" in words
    args = [word for word in words if word not in ("--debug", "--wide")] + args[len(words) :]
    for word in words:
        add_url_secrets(word)
    output.hints.clear()
    verb = next((f"lumina {word}" for word in args if word in VERBS), "lumina")
    try:
        _check_words(args)
        with output.single_notes():
            code = get_command(app).main(args, prog_name="lumina", standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        message, code = ("terminated", TERMINATED) if _terminations else ("interrupted", INTERRUPTED)
        message += f"; {output.hints[-1]}" if output.hints else _resume_hint(verb, words)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        output.silence_stdout()
        return 0
    except BrokenPipeError:
        output.silence_stdout()
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help of the group
            sys.stderr.write(f"{error}\n")
            return UsageError.exit_code
        message, code = _describe_error(error)
        if debug:
            sys.stderr.write(mask_secrets(traceback.format_exc()))
    sys.stderr.write(f"{verb}: {output.to_one_line(shorten(mask_secrets(message)))}\n")
    return code


def _check_words(args: list[str]) -> None:
    """Check that each argument is UTF-8 text, unless it names an existing file or is in an existing folder.

    Raises:
        UsageError: if one is not, as typed in a Latin-1 terminal; it could not be stored in any row.
    """
    for number, word in enumerate(args, 1):
        places = (word, word.partition("=")[2], word.partition("?")[0], os.path.dirname(word))
        if not is_text(word) and not any(not is_text(place) and os.path.lexists(place) for place in places):
            raise UsageError(f"argument {number} is not valid UTF-8 text: {word!a}; use a UTF-8 terminal")


def _resume_hint(verb: str, words: list[str]) -> str:
    """Return how to resume an interrupted command, or an empty string if it cannot be resumed."""
    if verb not in RESUMABLE or NOT_RESUMABLE & set(words[:2]):
        return ""
    piped = verb in WITH_OUT and not any(word.split("=")[0] == "--out" for word in words)
    return "" if piped else "; rerun the same command to resume"


def _describe_error(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, LuminaError):
        return str(error), error.exit_code
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        visible = (each for each in error.ctx.command.params if not each.hidden)
        known = [name for parameter in visible for name in parameter.opts if name.startswith("--")]
        from lumina_cli.cli.options import hint_other_name

        hint = hint_other_name(error.ctx.command.name, error.option_name, known)
        hint = hint or did_you_mean(error.option_name, known)
        return f"no option {error.option_name}{hint}", UsageError.exit_code
    if getattr(error, "param", None) and hasattr(error.__cause__, "errors"):  # pydantic's ValidationError
        name = error.param.get_error_hint().replace("'", "")
        return _describe_invalid_value(name, error.__cause__.errors()[0]), UsageError.exit_code
    if isinstance(error, TyperException):
        message = error.format_message().rstrip(".")
        return message[:1].lower() + message[1:], error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; reduce the size or the batch", LuminaError.exit_code
    return f"{type(error).__name__}: {error} (a bug; --debug shows the traceback)", LuminaError.exit_code


def _describe_invalid_value(name: str, mistake: dict) -> str:
    """Return the message for an invalid value of an option or argument, given pydantic's first error."""
    kind, limits = mistake["type"], mistake.get("ctx", {})
    start = f"invalid value {mistake['input']!r} for {name}"
    if " is not one of " in mistake["msg"]:
        choices = re.findall("'([^']*)'", mistake["msg"].partition(" is not one of ")[2])
        return f"{start}; choose from {', '.join(choices)}"
    for type_name, noun in (("int", "an integer"), ("float", "a number")):
        if kind.startswith(f"{type_name}_"):
            return f"{start}: not {noun}"
    for limit, words in (("ge", "at least"), ("le", "at most"), ("gt", "more than"), ("lt", "less than")):
        if limit in limits:
            return f"{start}: must be {words} {limits[limit]:g}"
    return f"{start}: {mistake['msg'][:1].lower()}{mistake['msg'][1:].rstrip('.')}"


def _open_closed_streams() -> None:
    """Open the null device for streams that the shell closed (`>&-`); a file could get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _handle_sigterm() -> None:
    """Handle SIGTERM with the current handler of Ctrl-C; only the exit code differs."""
    own = os.getpid()

    def handle(number: int, frame) -> None:
        if os.getpid() != own:  # a forked worker, terminated by its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        _terminations.append(now)
        if any(now - before < SIGTERM_WINDOW for before in _terminations[:-1]):
            return
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # scripts start background commands with Ctrl-C ignored
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)


def _handle_sigint() -> None:
    """Record Ctrl-C, so that it ends a command even if its exception is lost; see `check_interrupted`."""

    def handle(number: int, frame) -> None:
        output.interrupts.append(True)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        signal.signal(signal.SIGINT, handle)


def _mask_logs() -> None:
    """Mask secrets in what any library logs: HTTP clients log the URLs of their requests."""
    create = logging.getLogRecordFactory()

    def create_masked(*args, **settings) -> logging.LogRecord:
        record = create(*args, **settings)
        try:
            text = record.getMessage()
        except Exception:  # a broken record is reported when it is written
            return record
        if (masked := mask_secrets(text)) != text:
            record.msg, record.args = masked, None
        return record

    logging.setLogRecordFactory(create_masked)


def _hide_warnings() -> None:
    """Keep warnings of Python libraries off the terminal, in worker processes too.

    They address programmers. --debug, LUMINA_DEBUG, `python -W` and PYTHONWARNINGS show them.
    """
    asked = sys.warnoptions or os.environ.get("LUMINA_DEBUG") or "--debug" in sys.argv
    if not asked:
        warnings.showwarning = lambda *arguments, **options: None
        os.environ["PYTHONWARNINGS"] = "ignore"


def main() -> NoReturn:
    """Run `lumina` with the arguments of this process: the entry point of the console script."""
    _hide_warnings()
    _handle_sigint()
    _handle_sigterm()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    _mask_logs()
    code = run(sys.argv[1:])
    gc.freeze()  # the garbage collection at exit takes over a second once torch is loaded
    sys.exit(code)

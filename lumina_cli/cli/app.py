"""The `lumina` command: verbs in the order of the pipeline, exit codes, and the one printer of errors."""

import errno
import gc
import os
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from lumina_cli import __version__
from lumina_cli.cli import output
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import did_you_mean

VERBS = ("caption", "shard", "train", "sample", "eval", "bench", "convert", "doctor")
INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM
RESUMED = ("lumina caption", "lumina shard", "lumina sample")
ONLY_READ = {"info", "verify", "stats", "cat", "preview", "select"}  # these have nothing to go on with
MOMENT = 10.0  # seconds in which further SIGTERMs are the same one: Slurm and torchrun may each send theirs

_terminated: list[float] = []  # when SIGTERM asked the command to end


class Verbs(TyperGroup):
    """The top group: verbs keep their order, and what the system refuses becomes an error of one line."""

    def list_commands(self, ctx) -> list[str]:
        return [name for name in VERBS if name in self.commands]

    def resolve_command(self, ctx, args: list[str]):
        if args and args[0] not in self.commands:
            hint = did_you_mean(args[0], VERBS) or f"; choose from {', '.join(VERBS)}"
            raise UsageError(f"unknown verb {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except OSError as error:  # caught here because typer itself ends on a broken pipe, whichever it was
            raise LuminaError(_os_error_message(error)) from error


def _os_error_message(error: OSError) -> str:
    """Return what the operating system refused, in one line."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error.filename or reason}"
    return f"{error.filename}: {reason}" if error.filename else reason


app = typer.Typer(
    name="lumina",
    cls=Verbs,
    help="One toolkit for the whole life of a Lumina-Image 2.0 model, from pictures to scores.",
    epilog="Verbs read and write rows of JSON lines: lumina shard cat data | lumina caption - > new.jsonl",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.write_line(f"lumina {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Options before the verb; `run` takes --debug out before it gets here."""


for _name in VERBS:
    _module = import_module(f"lumina_cli.cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name)(getattr(_module, _name))


def run(args: list[str]) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    words = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in words or bool(os.environ.get("LUMINA_DEBUG"))
    args = [word for word in words if word != "--debug"] + args[len(words) :]
    verb = next((f"lumina {word}" for word in args if word in VERBS), "lumina")
    try:
        code = get_command(app).main(args, prog_name="lumina", standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        message, code = ("terminated", TERMINATED) if _terminated else ("interrupted", INTERRUPTED)
        message += _resume_hint(verb, words)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        output.silence_stdout()
        return 0
    except BrokenPipeError:
        output.silence_stdout()
        return 0
    except Exception as error:
        if (
            type(error).__name__ == "NoArgsIsHelpError"
        ):  # a group without a word after it: its message is the help
            sys.stderr.write(f"{error}\n")
            return UsageError.exit_code
        message, code = _explain(error)
        if debug:
            traceback.print_exc()
    sys.stderr.write(f"{verb}: {output.one_line(message)}\n")
    return code


def _resume_hint(verb: str, words: list[str]) -> str:
    """Return how a command that was stopped is gone on with, where that is possible."""
    if verb == "lumina train":
        out = next((word for word in words if word.startswith("out=")), "out=RUN")
        return f"; `lumina train {out} --resume` goes on"
    if verb not in RESUMED or ONLY_READ & set(words[:2]):
        return ""
    piped = verb == "lumina caption" and not any(word.split("=")[0] == "--out" for word in words)
    return "" if piped else "; the same line goes on"


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, LuminaError):
        return str(error), error.exit_code
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        known = [
            name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")
        ]
        return f"no option {error.option_name}{did_you_mean(error.option_name, known)}", UsageError.exit_code
    if isinstance(error, TyperException):
        message = error.format_message().rstrip(".")
        return message[:1].lower() + message[1:], error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; a smaller size or batch needs less", LuminaError.exit_code
    return f"{type(error).__name__}: {error} (a bug; --debug shows where)", LuminaError.exit_code


def _open_closed_streams() -> None:
    """Point streams that the shell closed (`>&-`) at nothing; else the next file opened has their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _handle_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, whatever that does just then; only the exit code differs."""
    own = os.getpid()

    def end(number: int, frame) -> None:
        if os.getpid() != own:  # a forked worker, which its parent ends like this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        _terminated.append(now)
        if any(now - before < MOMENT for before in _terminated[:-1]):
            return
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # Ctrl-C is ignored in what a script runs in the background
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def _handle_sigint() -> None:
    """Let Ctrl-C end a command even where its exception is lost on the way; see `output.heed`."""

    def end(number: int, frame) -> None:
        output.asked.append(True)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, and stays so
        signal.signal(signal.SIGINT, end)


def main() -> NoReturn:
    """The entry point of the console script and of `python -m lumina_cli`."""
    _handle_sigint()
    _handle_sigterm()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    code = run(sys.argv[1:])
    gc.freeze()  # the interpreter's last search for garbage takes over a second where torch is loaded
    sys.exit(code)

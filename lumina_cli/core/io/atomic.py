"""Files that are either whole or not there: written aside, then renamed."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lumina_cli.core.errors import LuminaError

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter")


@contextmanager
def atomic_write(path: str | Path, replace: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends well, and is removed otherwise.

    The temporary name keeps the suffix, so that writers which choose a format by it still work. Folders
    that are missing on the way to `path` are made. Without `replace`, FileExistsError where `path` is there
    by then; a file system without hard links may miss what came in the same moment. What is not `durable` is
    whole after a kill, but maybe not after a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.urandom(6).hex()}.part{path.suffix}")
    try:
        yield aside
        if durable and aside.is_file():
            with aside.open(
                "rb"
            ) as file:  # without this a power cut can leave an empty file under the final name
                os.fsync(file.fileno())
        if replace or not _linked(aside, path):
            aside.replace(path)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        raise


def _linked(aside: Path, path: Path) -> bool:
    """Rename a file, FileExistsError where the name is not free; False where links are not possible."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return False
    aside.unlink()
    return True


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what the disk refuses while `path` is written into one line; other errors stay what they are.

    A full disk is an OSError in Python, a SafetensorError in safetensors, a bare Exception in tokenizers and
    a RuntimeError in torch.save.
    """
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        full = reason == os.strerror(errno.ENOSPC)
        raise LuminaError(
            f"the disk is full: {path}" if full else f"cannot write {path}: {reason}"
        ) from error


@contextmanager
def open_aside(aside: Path, path: str | Path) -> Iterator[IO[bytes]]:
    """Open what becomes `path`; where the disk refuses what is left to write at the end, that is one line.

    For a block in which `disk_errors` would blame `path` for files that are read meanwhile.
    """
    with disk_errors(path):
        file = aside.open("wb")
    try:
        yield file
    finally:
        with disk_errors(path):
            file.close()


def lock_file(file: int | IO, place: str | Path, other: str) -> None:
    """Lock an open file or folder for this process until it is closed; the system unlocks it where this dies.

    LuminaError where another process has it; `other` says what to do then. A file system without locks
    passes.
    """
    with suppress(ImportError):  # not on every system
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LuminaError(f"{place} is being written by another process; {other}") from None
        except OSError:  # a network file system without locks
            pass


@contextmanager
def locked_folder(folder: str) -> Iterator[None]:
    """Keep other processes from writing a folder of this machine at the same time; any other place passes.

    The folder itself is locked, so no file is left in the way.
    """
    number = lock_folder(folder)
    try:
        yield
    finally:
        if number is not None:
            os.close(number)


def lock_folder(folder: str) -> int | None:
    """Return an open folder, locked until it is closed (see `hold`); None for one that cannot be opened."""
    if not os.path.isdir(folder):
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that does not open folders
        return None
    try:
        lock_file(number, folder, "wait for it, or name another folder")
    except LuminaError:
        os.close(number)
        raise
    return number


def _refusal(error: BaseException) -> str | None:
    """Return the system's reason for refusing a write, or None where `error` is about something else."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        # the writer then complains once more while it closes the file: the system's own error came before
        earlier = error.__context__ and _refusal(error.__context__)
        return earlier or "the file could not be written whole"
    # safetensors and tokenizers, written in Rust, quote the system's error
    number = None if isinstance(error, LuminaError) else _RUST_ERROR.search(str(error))
    return os.strerror(int(number[1])) if number else None

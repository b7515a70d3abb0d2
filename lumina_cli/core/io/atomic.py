"""Atomic writes: a file or folder is written under a temporary name, then renamed; plus locks of folders."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lumina_cli.core.errors import LuminaError

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter")


@contextmanager
def atomic_write(path: str | Path, replace: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds and is removed otherwise.

    The temporary name keeps the suffix, because some writers choose the format by it. Missing parent folders
    are created. Without `durable` the file survives a killed process, but possibly not a power failure.
    Without `replace` an existing file is kept; a file system without hard links may miss one created at the
    same moment.

    Raises:
        FileExistsError: if `path` exists when the block ends, and not `replace`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.urandom(6).hex()}.part{path.suffix}")
    try:
        yield aside
        apply_umask(aside)
        if durable and aside.is_file():
            with aside.open("rb") as file:
                os.fsync(file.fileno())  # or a power failure can leave an empty file under the final name
        if replace or not _linked(aside, path):
            aside.replace(path)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        raise


def apply_umask(path: Path) -> None:
    """Give a file, or the files in a folder, at least the permissions of any new file.

    The writers of safetensors and of temporary files create files that only their owner may read.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            mode = stat.S_IMODE(file.stat().st_mode)
            if wanted := 0o666 & ~umask & ~mode:
                with suppress(OSError):  # e.g. a file system without permissions
                    file.chmod(mode | wanted)


def _linked(aside: Path, path: Path) -> bool:
    """Give a file its final name through a hard link; return False if the file system has no hard links.

    Raises:
        FileExistsError: if the name is taken.
    """
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
    """Turn an error of the disk while `path` is written into one line; other errors pass unchanged.

    A full disk is an OSError in Python, a SafetensorError in safetensors, a bare Exception in tokenizers and
    a RuntimeError in torch.save.

    Raises:
        LuminaError: if writing fails.
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
    """Open the temporary file that becomes `path`; errors on opening and closing name `path`.

    For blocks that also read other files: wrapping all of the block in `disk_errors` would blame `path` for
    them.

    Raises:
        LuminaError: if the disk refuses to open the file, or to write what is buffered when it is closed.
    """
    with disk_errors(path):
        file = aside.open("wb")
    try:
        yield file
    finally:
        with disk_errors(path):
            file.close()


def lock_file(file: int | IO, place: str | Path, other: str) -> None:
    """Lock an open file or folder for this process until it is closed, or the process dies.

    `other` is the advice in the error message. On a file system without locks this does nothing.

    Raises:
        LuminaError: if another process holds the lock.
    """
    with suppress(ImportError):  # fcntl exists on Unix only
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LuminaError(f"{place} is being written by another process; {other}") from None
        except OSError:  # a network file system without locks
            pass


@contextmanager
def locked_folder(folder: str) -> Iterator[None]:
    """Keep other processes from writing a local folder during the block; does nothing for a URL.

    The folder itself is locked, so no lock file is left behind.

    Raises:
        LuminaError: if another process is writing the folder.
    """
    number = lock_folder(folder)
    try:
        yield
    finally:
        if number is not None:
            os.close(number)


def lock_folder(folder: str) -> int | None:
    """Return the descriptor of a folder that is locked until it is closed; None if it cannot be opened."""
    if not os.path.isdir(folder):
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system can open a folder
        return None
    try:
        lock_file(number, folder, "wait for it, or choose another folder")
    except LuminaError:
        os.close(number)
        raise
    return number


def _refusal(error: BaseException) -> str | None:
    """Return the system's reason for refusing a write, or None if `error` has another cause."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        # torch raises this while it closes the file; the error of the system itself is its context
        earlier = error.__context__ and _refusal(error.__context__)
        return earlier or "the file could not be written whole"
    # the Rust code of safetensors and tokenizers quotes the error number of the system
    number = None if isinstance(error, LuminaError) else _RUST_ERROR.search(str(error))
    return os.strerror(int(number[1])) if number else None

"""Atomic writes: a file or folder is written under a temporary name, then renamed; plus locks of folders.

A temporary name identifies the process that writes the file, so that another process can distinguish a file
that is being written from an abandoned one: .HOST PID START RANDOM.part, each as eight hex digits.
"""

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from lumina_cli.core.errors import LuminaError

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_NAME = re.compile(r"\.([0-9a-f]{8})([0-9a-f]{8})([0-9a-f]{8})[0-9a-f]{8}\.part(\..*)?")
_OLD_NAME = re.compile(r"\.[0-9a-f]{12}\.part(\..*)?")  # of earlier versions: random digits
DAY = 24 * 3600  # seconds after which a file of another machine counts as abandoned
_swept: set[tuple[int, str]] = set()  # (process, folder)
_TORCH_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter")


@contextmanager
def atomic_write(path: str | Path, replace: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds and is removed otherwise.

    The temporary name keeps the suffix, because some writers choose the format by it. Missing parent folders
    are created. Without `durable` the file survives a killed process, but possibly not a power failure.
    Without `replace` an existing file is kept; a file system without hard links may miss one created at the
    same moment. Temporary files that killed processes left in the folder are removed.

    Raises:
        FileExistsError: if `path` exists when the block ends, and not `replace`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(partial_name(path.suffix))
    try:
        yield aside
        apply_umask(aside)
        if durable and aside.is_file():
            with aside.open("rb") as file:
                os.fsync(file.fileno())  # or a power failure can leave an empty file under the final name
        if replace or not _linked(aside, path):
            aside.replace(path)
        sweep_once(path.parent)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        raise


def partial_name(suffix: str) -> str:
    """Return a new name of a temporary file of this process."""
    pid = os.getpid()
    return f".{_host()}{pid:08x}{_start_of(pid) or 0:08x}{os.urandom(4).hex()}.part{suffix}"


def sweep(folder: str | os.PathLike, exclusive: bool = False) -> None:
    """Remove the temporary files in a local folder that no process is writing.

    Files of other machines are removed after a DAY, or at once if no other machine can be writing the folder
    (`exclusive`).
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".part") or ".part." in entry.name:
                with suppress(OSError):
                    if _is_abandoned(entry, exclusive):
                        _remove(Path(entry.path))


def sweep_once(folder: Path) -> None:
    """Call `sweep` for the first file that this process writes to a folder."""
    place = (os.getpid(), os.path.abspath(folder))
    if place not in _swept:
        _swept.add(place)
        sweep(folder)


def _is_abandoned(entry: os.DirEntry, exclusive: bool) -> bool:
    found = _NAME.fullmatch(entry.name)
    if found is None:
        return exclusive and _OLD_NAME.fullmatch(entry.name) is not None
    host, pid, start = found[1], int(found[2], 16), int(found[3], 16)
    if host != _host():
        return exclusive or time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY
    return _start_of(pid) != start


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@lru_cache
def _host() -> str:
    """Return eight hex digits that identify this machine since it was started."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{zlib.crc32(f'{socket.gethostname()} {boot}'.encode()):08x}"


def _start_of(pid: int) -> int | None:
    """Return when a process was started, as process numbers are used again; None if it does not run.

    Without /proc the time is 0.
    """
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat").read_bytes()
        state, *fields = status.rpartition(b")")[2].split()
        return None if state == b"Z" else int(fields[18]) & 0xFFFFFFFF
    except (ProcessLookupError, OverflowError):
        return None
    except (OSError, ValueError, IndexError):  # a process of another user, or no /proc
        return 0


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


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, before work that takes long; create missing parent folders.

    Raises:
        LuminaError: if it cannot.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part"):
            pass


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


def lock_file(file: int | IO, place: str | Path, other: str, shared: bool = False) -> None:
    """Lock an open file or folder for this process until it is closed, or the process dies.

    `other` is the advice in the error message. Several processes can hold a `shared` lock. On a file system
    without locks this does nothing.

    Raises:
        LuminaError: if another process holds the lock.
    """
    with suppress(ImportError):  # fcntl exists on Unix only
        import fcntl

        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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


def lock_folder(folder: str, shared: bool = False) -> int | None:
    """Return the descriptor of a folder that is locked until it is closed; None if it cannot be opened.

    `shared` is that of `lock_file`.
    """
    if not os.path.isdir(folder):
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system can open a folder
        return None
    try:
        lock_file(number, folder, "wait for it, or choose another folder", shared)
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

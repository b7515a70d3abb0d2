"""Files that are either whole or not there: written aside, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends well, and is removed otherwise.

    The temporary name keeps the suffix, so that writers which choose a format by it still work. Folders
    that are missing on the way to `path` are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.urandom(6).hex()}.part{path.suffix}")
    try:
        yield aside
        if aside.is_file():
            with aside.open(
                "rb"
            ) as file:  # without this a power cut can leave an empty file under the final name
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        raise

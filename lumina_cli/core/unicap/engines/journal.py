"""Answers of a paid endpoint on disk, as soon as they arrive, until the rows that need them are written.

The file has one line per answer. A run that was killed finds its answers there and does not ask again.
Answers of rows that were written long before are dropped to keep the file small. The last row deletes it.
"""

import contextlib
import hashlib
import json
import threading
from pathlib import Path
from typing import IO, Any

from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.unicap.protocol import Answer, Question

ROWS = 1000  # written rows after which the answers of earlier rows are dropped


class AnswerJournal:
    """The answers in a file, by question; all methods may be called from several threads.

    rows    number of written rows after which answers of earlier rows are dropped; must exceed the number of
            rows in progress
    """

    def __init__(self, path: Path, rows: int = ROWS):
        self.path, self.rows = path, rows
        self._recent: dict[str, dict] = {}
        self._earlier: dict[str, dict] = _read(path)
        self._file: IO[bytes] | None = None
        self._written = 0
        self._lock = threading.Lock()

    def find(self, question: Question, model: str) -> Answer | None:
        """Return the stored answer of a model to a question, or None."""
        key = _key(question, model)
        found = self._recent.get(key) or self._earlier.get(key)
        return Answer(found["text"], found["finished"], found["tokens"]) if found else None

    def add(self, question: Question, model: str, answer: Answer) -> None:
        """Store an answer; one with an error is asked for again."""
        if answer.error is not None:
            return
        entry = {"key": _key(question, model), "text": answer.text}
        entry |= {"finished": answer.finished, "tokens": answer.tokens}
        with self._lock, disk_errors(self.path):
            self._recent[entry["key"]] = entry
            self._file = self._file or self.path.open("ab", buffering=0)
            self._file.write(_line(entry))

    def row_written(self) -> None:
        """Count a written row; from time to time, drop the answers that no remaining row needs."""
        self._written += 1
        if self._written % self.rows:
            return
        with self._lock, disk_errors(self.path):
            self._close()
            self._earlier, self._recent = self._recent, {}
            with atomic_write(self.path) as aside:
                aside.write_bytes(b"".join(map(_line, self._earlier.values())))

    def delete(self) -> None:
        """Delete the file; the run is complete."""
        with self._lock:
            self._close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and keep it for the next run."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _key(question: Question, model: str) -> str:
    """Return a name of a question to a model; the seed of the question depends on the image."""
    form = json.dumps(question.form, sort_keys=True)
    parts = (model, question.seed, question.attempt, question.level, question.lang)
    name = "\0".join(map(str, (*parts, question.max_tokens, form, question.text)))
    return hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _read(path: Path) -> dict[str, dict]:
    """Return the entries of a file; a torn last line and lines of other content are dropped from it."""
    if not path.is_file():
        return {}
    entries, whole = {}, True
    for line in path.read_bytes().splitlines(keepends=True):
        entry = _parse(line)
        whole = whole and entry is not None
        if entry is not None:
            entries[entry["key"]] = entry
    if not whole:
        with disk_errors(path), atomic_write(path) as aside:
            aside.write_bytes(b"".join(map(_line, entries.values())))
    return entries


def _parse(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
        kinds = {"key": str, "text": str, "finished": bool, "tokens": int}
        right = line.endswith(b"\n") and all(isinstance(entry[name], kind) for name, kind in kinds.items())
        return entry if right else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None

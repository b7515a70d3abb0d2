"""Statistics and events of a captioning run: counts, rates, remaining time, and the observer."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.unicap.resumable_file import ResumableFile
from lumina_cli.core.unicap.reuse import reused_captions

Row = dict[str, Any]


class CaptionStats:
    """Counts of images, captions, rejects by reason, questions and tokens.

    total       expected number of images; None if unknown
    done        images from an earlier run, and `done_bad`, the unreadable ones among them
    idle        whether the earlier run had left nothing to do
    """

    def __init__(self, total: int | None = None, done: int = 0):
        self.total, self.done, self.done_bad, self.idle = total, done, 0, False
        self.start = time.monotonic()
        self.counts: Counter = Counter()
        self.rejected: Counter = Counter()

    def add(self, items: Sequence[Any], calls: int) -> None:
        """Count a finished batch and the number of engine calls it took."""
        good = [item for item in items if item.error is None]
        self.counts.update(pictures=len(good), bad_pictures=len(items) - len(good), calls=calls)
        for item in good:
            self.counts.update(item.counts)
            self.counts["captions"] += sum(map(len, item.captions.values()))
            own = get_captions(item.row)
            self.counts["replaced"] += sum(
                level in own.get(lang, {}) for lang, texts in item.captions.items() for level in texts
            )
            self.counts["reused"] += sum(map(len, reused_captions(item.row).values()))
            self.rejected.update(one["code"] for one in item.rejected)

    @property
    def seen(self) -> int:
        """Number of images that this run has processed, including unreadable ones."""
        return self.counts["pictures"] + self.counts["bad_pictures"]

    def row(self) -> dict[str, Any]:
        """Return counts and rates as a row; seconds include loading the model."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        counts = {
            name: self.counts[name] for name in ("pictures", "captions", "bad_pictures", "questions", "calls")
        }
        images = self.counts["pictures"]
        counts |= {name: self.counts[name] for name in ("requested", "retries", "kept") if self.counts[name]}
        row = counts | {
            "rejected": dict(self.rejected.most_common()),
            "questions_per_picture": round(self.counts["questions"] / images, 2) if images else None,
            "tokens": self.counts["tokens"],
            "seconds": round(seconds, 2),
            "pictures_per_s": round(images / seconds, 2),
            "tokens_per_s": round(self.counts["tokens"] / seconds, 1),
        }
        if self.counts["replaced"]:
            row["replaced"] = self.counts["replaced"]
        if self.counts["reused"]:
            row["reused"] = self.counts["reused"]
        if self.counts["unwrapped"]:
            row["unwrapped"] = self.counts["unwrapped"]
        if self.counts["cut_scores"]:
            row["scored_cut"] = self.counts["cut_scores"]
        if self.counts["unread_scores"]:
            row["not_scored"] = self.counts["unread_scores"]
        return row

    def left(self) -> float | None:
        """Return the remaining seconds at the current rate; None if the total is unknown."""
        if self.total is None or not self.seen:
            return None
        return max(self.total - self.done - self.seen, 0) * (time.monotonic() - self.start) / self.seen

    def line(self) -> str:
        """Return a one-line summary."""
        row = self.row()
        if self.idle:
            bad = f", {self.done_bad} of them unreadable" if self.done_bad else ""
            return f"nothing to do: the file has all {self.done} images{bad}"
        seen = self.done + self.seen
        words = [f"{seen}{f' of {self.total}' if self.total else ''} images", _format_captions(row)]
        if self.rejected:
            words.append(f"{sum(self.rejected.values())} rejected ({_format_counts(row['rejected'])})")
        if row.get("replaced"):
            words.append(f"{row['replaced']} existing captions replaced")
        if row.get("kept"):
            words.append(f"{row['kept']} existing captions kept (--replace replaces them)")
        if row.get("reused"):
            words.append(f"{row['reused']} reused")
        if row.get("unwrapped"):
            words.append(f"{row['unwrapped']} taken out of chat markup or polite words")
        if row["bad_pictures"]:
            words.append(f"{row['bad_pictures']} unreadable")
        if row["questions_per_picture"]:
            again = f", {row['retries']} of them retries" if row.get("retries") else ""
            words.append(
                f"{row['questions_per_picture']:g} questions per image in {row['calls']} calls{again}"
            )
        if row.get("scored_cut"):
            words.append(f"{row['scored_cut']} scored by their first tokens only")
        if row.get("not_scored"):
            words.append(f"{row['not_scored']} not scored (the scorer does not support their language)")
        words.append(f"{row['pictures_per_s']:g} images/s, {row['tokens_per_s']:g} tokens/s")
        left = self.left()
        if left:
            words.append(f"{_format_duration(left)} left")
        return ", ".join(words)


class CaptionObserver:
    """Receives the events of a captioning run; subclasses override `on_progress` and `on_message`.

    stats    counts, rates and remaining time of the run
    file     output file of a resumable run, which also records the rejected rows
    """

    def __init__(self, stats: CaptionStats | None = None):
        self.stats = stats or CaptionStats()
        self.file: ResumableFile | None = None

    @property
    def previous(self) -> tuple[int, int, int]:
        """(rows, unreadable ones, fully rejected ones) of an earlier run that this one does not repeat."""
        return self.file.before if self.file else (0, 0, 0)

    def on_split(self, index: int, count: int) -> None:
        """Handle a run that processes only every `count`-th row."""
        if self.stats.total is not None:
            self.stats.total = len(range(index, self.stats.total, count))
            self.on_progress()

    def on_resume(self) -> None:
        """Handle the rows of an earlier run that this one continues."""
        self.stats.done, self.stats.done_bad = self.previous[:2]
        self.on_progress()

    def on_batch(self, items: Sequence[Any], calls: int) -> None:
        """Handle a finished batch and the number of engine calls it took."""
        self.stats.add(items, calls)
        self.on_progress()

    def on_reject(self, row: Row, reason: str) -> None:
        """Handle a row whose image cannot be captioned; record it in the output file, if there is one."""
        if self.file is None or self.file.reject(row, reason):
            self.on_message(f"skipped {reason}")

    def on_progress(self) -> None:
        """Handle a change of the counts, for example by updating a progress bar."""

    def on_message(self, message: str) -> None:
        """Handle a message to the user."""


def _format_captions(row: Row) -> str:
    """Return how many of the requested captions were written."""
    captions, requested = row["captions"], row.get("requested", row["captions"])
    return (
        f"{captions} captions" if captions >= requested else f"{captions} of {requested} requested captions"
    )


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in counts.items())


def _format_duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

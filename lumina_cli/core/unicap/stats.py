"""What a run of captioning came to: counts, speed, and the time that is left."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.unicap.reuse import taken_of


class CaptionStats:
    """Counts pictures, captions, rejects by reason, questions and tokens, from the first batch on.

    `total` pictures are expected, None where nobody knows; `done` of them were there from an earlier run,
    `done_bad` of these unreadable; `idle` is whether that was found to be all. `watch` is called whenever one
    of these, or `seen`, has changed.
    """

    def __init__(self, total: int | None = None, done: int = 0):
        self.total, self.done, self.done_bad, self.idle = total, done, 0, False
        self.start = time.monotonic()
        self.watch: Callable[[], None] = lambda: None
        self.counts: Counter = Counter()
        self.rejected: Counter = Counter()

    def add(self, shots: Sequence[Any], calls: int) -> None:
        """Count a finished batch, and the `calls` of the engine that it took."""
        good = [shot for shot in shots if shot.error is None]
        self.counts.update(pictures=len(good), bad_pictures=len(shots) - len(good), calls=calls)
        for shot in good:
            self.counts.update(shot.counts)
            self.counts["captions"] += sum(map(len, shot.captions.values()))
            own = get_captions(shot.row)
            self.counts["replaced"] += sum(
                level in own.get(lang, {}) for lang, texts in shot.captions.items() for level in texts
            )
            self.counts["reused"] += sum(map(len, taken_of(shot.row).values()))
            self.rejected.update(one["code"] for one in shot.rejected)
        self.watch()

    @property
    def seen(self) -> int:
        """How many pictures this run is through with, unreadable ones among them."""
        return self.counts["pictures"] + self.counts["bad_pictures"]

    def resume(self, done: int, done_bad: int) -> None:
        """Note how many pictures were there from an earlier run, and how many of them unreadable."""
        self.done, self.done_bad = done, done_bad
        self.watch()

    def row(self) -> dict[str, Any]:
        """Return the counts and rates as a row; seconds are since the start, loading included."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        counts = {
            name: self.counts[name] for name in ("pictures", "captions", "bad_pictures", "questions", "calls")
        }
        pictures = self.counts["pictures"]
        row = counts | {
            "rejected": dict(self.rejected.most_common()),
            "questions_per_picture": round(self.counts["questions"] / pictures, 2) if pictures else None,
            "tokens": self.counts["tokens"],
            "seconds": round(seconds, 2),
            "pictures_per_s": round(pictures / seconds, 2),
            "tokens_per_s": round(self.counts["tokens"] / seconds, 1),
        }
        if self.counts["replaced"]:
            row["replaced"] = self.counts["replaced"]
        if self.counts["reused"]:
            row["reused"] = self.counts["reused"]
        if self.counts["cut_scores"]:
            row["scored_cut"] = self.counts["cut_scores"]
        if self.counts["unread_scores"]:
            row["not_scored"] = self.counts["unread_scores"]
        return row

    def left(self) -> float | None:
        """Return the seconds that are left at the present pace; None where nobody knows."""
        if self.total is None or not self.seen:
            return None
        return max(self.total - self.done - self.seen, 0) * (time.monotonic() - self.start) / self.seen

    def line(self) -> str:
        """Return one line for a person."""
        row = self.row()
        if self.idle:
            bad = f", {self.done_bad} of them unreadable" if self.done_bad else ""
            return f"nothing was left to do: the file has all {self.done} pictures{bad}"
        seen = self.done + self.seen
        words = [f"{seen}{f' of {self.total}' if self.total else ''} pictures", f"{row['captions']} captions"]
        if self.rejected:
            words.append(f"{sum(self.rejected.values())} rejected ({_listed(row['rejected'])})")
        if row.get("replaced"):
            words.append(f"{row['replaced']} captions of the rows replaced (--keep leaves them)")
        if row.get("reused"):
            words.append(f"{row['reused']} taken over")
        if row["bad_pictures"]:
            words.append(f"{row['bad_pictures']} unreadable")
        if row["questions_per_picture"]:
            words.append(f"{row['questions_per_picture']:g} questions a picture in {row['calls']} calls")
        if row.get("scored_cut"):
            words.append(f"{row['scored_cut']} scored by their first tokens only")
        if row.get("not_scored"):
            words.append(f"{row['not_scored']} not scored, whose language the scorer does not read")
        words.append(f"{row['pictures_per_s']:g} pictures/s, {row['tokens_per_s']:g} tokens/s")
        left = self.left()
        if left:
            words.append(f"{_span(left)} left")
        return ", ".join(words)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in counts.items())


def _span(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

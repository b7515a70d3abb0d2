"""rejects.jsonl of a folder of shards: the rows of the input that do not have a sample."""

import hashlib
import os
from collections.abc import Iterable

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row, get_error_code, parse_row
from lumina_cli.core.secrets import mask_url
from lumina_cli.core.shards.image_ref import ImageFile, image_ref
from lumina_cli.core.shards.sample import ShardSettings, make_samples
from lumina_cli.core.shards.tar import RejectedImage
from lumina_cli.core.shards.update.changes import date_of

REJECTS = "rejects.jsonl"
ROW_CODES = ("captions", "bad_caption", "bad_row", "no_image", "scheme")  # the row is at fault, not its image


def count_rows(totals: dict) -> int:
    """Return the number of input rows of a folder, without those that an earlier command rejected."""
    return totals["rows"] - totals.get("upstream", [0])[0]


def read_known_rejects(dest: str, totals: dict) -> list[dict]:
    """Return the lines of rejects.jsonl, without those of earlier commands.

    Raises:
        LuminaError: if the file was modified.
    """
    place = filesystem.join(dest, REJECTS)
    lines = filesystem.read_file(place).decode().split("\n") if totals["rejects"] else []
    rows = [parse_row(line, place) for line in lines if line]
    if len(rows) != totals["rejects"]:
        raise LuminaError(
            f"{place} was modified after it was written: it has {len(rows)} lines, not {totals['rejects']}; "
            "use --force to rewrite all shards"
        )
    return [row for row in rows if row["row"] < count_rows(totals)]


def upstream_rejects(left_out: list[dict], first: int) -> list[dict]:
    """Return lines of rejects.jsonl for rows that an earlier command rejected, numbered from `first`."""
    rejects = []
    for number, row in enumerate(left_out, start=first):
        named = {"row": number, "key": row.get("key"), "image": row.get("image")}
        rejects.append(
            named | {"code": get_error_code(row), "reason": str(row.get("reason")), "upstream": True}
        )
    return rejects


def digest_rejects(left_out: list[dict]) -> list:
    """Return [number, digest] of the rows that an earlier command rejected; [0] if there are none."""
    text = "".join(dump_row(row) + "\n" for row in upstream_rejects(left_out, 0))
    return [len(left_out), hashlib.sha256(text.encode()).hexdigest()[:16]] if left_out else [0]


def dump_rejects(rejects: Iterable[dict]) -> bytes:
    """Return the bytes of rejects.jsonl."""
    return "".join(dump_row(row) + "\n" for row in rejects).encode()


class KnownRejects:
    """The rejects of a folder, and those of them that rows of the input still are."""

    def __init__(self, dest: str, totals: dict, making: ShardSettings):
        self.making, self.before = making, read_known_rejects(dest, totals)
        self.written = date_of(filesystem.join(dest, REJECTS)) if self.before else None
        self.waiting: dict[tuple[str, str], list[dict]] = {}
        for reject in self.before:
            self.waiting.setdefault(_identity(reject["key"], reject["image"]), []).append(reject)
        self.current: list[dict] = []

    def take(self, number: int, row: dict) -> bool:
        """Whether a row of the input is a known reject that still cannot be used."""
        found = self.waiting.get(_identity(row.get("key"), image_ref(row.get("image")).origin))
        if not found:
            return False
        reject = found.pop(0) | {"row": number}
        if self._may_be_usable(row, reject):
            fresh: list[dict] = []
            if list(make_samples([(number, row)], {}, self.making, fresh)):
                return False
            reject = fresh[0]
        self.current.append(reject)
        return True

    def _may_be_usable(self, row: dict, reject: dict) -> bool:
        """Whether a row must be examined again: nothing is read for an image that has not changed."""
        image = row.get("image")
        if isinstance(image, RejectedImage) or reject.get("upstream") or reject["code"] in ROW_CODES:
            return True
        ref = image_ref(image)
        path = ref.local_path if isinstance(ref, ImageFile) else None
        try:
            date = os.stat(path).st_mtime_ns if path else None
        except (OSError, ValueError):
            return False
        newer = date is not None and self.written is not None and date > self.written
        return newer or (date is not None and reject["code"] == "missing")


def _identity(key: object, image: object) -> tuple[str, str]:
    return str(key), mask_url(str(image))

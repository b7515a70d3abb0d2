"""One sample of a shard: a row, its image and its ground truth, read and checked, with a key of its own."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.ingest import IngestedImage, ingest_image
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row, get_captions, get_error, get_error_code
from lumina_cli.core.io.row_checks import LongLine
from lumina_cli.core.limits import MAX_DEPTH, MAX_ROW, check_json_value
from lumina_cli.core.secrets import mask_url, mask_urls
from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.tar import TRUTH, TarImage, sanitize_key

AT_ONCE = 32  # remote images that are fetched at the same time

Count = Callable[[list[str]], list[int]]  # texts -> numbers of tokens; picklable if there are workers


@dataclass(frozen=True)
class ShardSettings:
    """Settings of all shards.

    full     decode every image
    encode   re-encode images to this format
    count    returns the token counts of texts
    source   the source of rows that do not have a "source"
    """

    full: bool = False
    encode: str | None = None
    count: Count | None = None
    source: str | None = None


@dataclass(frozen=True)
class Sample:
    """A sample to write.

    line    the JSON of the row
    known   the line of an earlier index that describes it, if it is copied unchanged from another tar
    """

    key: str
    image: IngestedImage
    truth: dict[str, bytes]
    row: dict
    line: bytes
    known: dict | None = None


def make_samples(
    rows: Iterable[tuple[int, dict]], keys: dict[str, int], making: ShardSettings, rejects: list[dict]
) -> Iterator[Sample]:
    """Yield the samples of (number in the input, row), with keys that are unique among `keys`.

    Rows that cannot be used are added to `rejects`.
    """
    numbered = list(rows)
    fetched = _fetched([row for _, row in numbered])
    for (number, _), (row, image) in zip(numbered, fetched, strict=True):
        try:
            if isinstance(image, LuminaError):
                raise image
            yield _sample(row, image, image_ref(row.get("image")).origin, keys, making)
        except LuminaError as error:
            rejects.append(make_reject(number, row, error))


def make_reject(number: int, row: dict, error: LuminaError) -> dict:
    """Return the line of rejects.jsonl for a row of the input that cannot be used."""
    origin = image_ref(row.get("image")).origin
    named = {"row": number, "key": row.get("key"), "image": origin and mask_url(origin)}
    why = {"code": getattr(error, "code", "unusable"), "reason": str(error)}
    return named | why | ({"upstream": True} if get_error(row) else {})


def _fetched(rows: list[dict]) -> Iterator[tuple[dict, Any]]:
    """Yield each row with the bytes of its image, or the error of reading it.

    Remote images are fetched AT_ONCE at a time, because object stores have a high latency.
    """
    if not any(map(_is_remote, rows)):
        for row in rows:
            yield row, fetch_image(row)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(rows), AT_ONCE):
            group = rows[start : start + AT_ONCE]
            yield from zip(group, pool.map(fetch_image, group), strict=True)


def _is_remote(row: dict) -> bool:
    origin = image_ref(row.get("image")).origin
    return origin is not None and filesystem.is_url(origin)


def fetch_image(row: dict) -> bytes | LuminaError:
    """Return the bytes of the image of a row, or the error of reading it."""
    if reason := get_error(row):
        return InvalidImage(reason, get_error_code(row))
    try:
        return image_ref(row.get("image")).read()
    except LuminaError as error:
        return error


def _sample(
    row: dict, image: bytes, origin: str | None, keys: dict[str, int], making: ShardSettings
) -> Sample:
    ingested = ingest_image(image, origin or "the image in memory", making.full, making.encode)
    truth = read_truth(row)
    check_captions(row)
    return build_sample(row, sanitize_key(raw_key(row, origin), keys), ingested, truth, origin)


def raw_key(row: dict, origin: str | None) -> str:
    """Return the key of a row before it is made safe and unique: its "key", or the name of its image."""
    return str(row.get("key") or Path(origin or "picture").stem)


def check_captions(row: dict) -> None:
    """Check the captions of a row.

    Raises:
        InvalidImage: if they are malformed.
    """
    try:
        get_captions(row)
    except LuminaError as error:
        raise InvalidImage(str(error), "captions") from error


def build_sample(
    row: dict, key: str, image: IngestedImage, truth: dict[str, bytes], origin: str | None
) -> Sample:
    """Return the sample of a row whose parts are known.

    Raises:
        InvalidImage: if JSON cannot represent the row.
    """
    kept = stored_row(row, key, image.width, image.height, origin)
    return Sample(key, image, truth, kept, _checked_line(kept))


def _checked_line(row: dict) -> bytes:
    """Return the JSON of a row.

    Raises:
        InvalidImage: if the row exceeds the limits of rows, so that readers would refuse it.
    """
    try:
        line = dump_line(row)
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH or len(line) > MAX_ROW:
            check_json_value(row)
    except (RecursionError, ValueError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InvalidImage(f"the row cannot be stored: {reason}", "bad_row") from error
    if len(line) > MAX_ROW:
        raise InvalidImage(f"the row is {LongLine.reason}", "bad_row")
    return line


def stored_row(row: dict, key: str, width: int, height: int, origin: str | None) -> dict:
    """Return the fields of a row that its JSON member contains."""
    kept = {
        name: value
        for name, value in row.items()
        if name != "image" and not (name in TRUTH and is_truth(value))
    }
    kept |= {name: mask_urls(kept[name]) for name in TRUTH if name in kept}
    kept |= {"key": key, "width": width, "height": height}
    if origin is not None:
        kept.setdefault("origin", mask_url(origin))
    return kept


def dump_line(row: dict) -> bytes:
    """Return `dump_row(row)` as bytes; faster for rows that JSON can represent."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return dump_row(row).encode()


def is_truth(value: Any) -> bool:
    """Whether "depth" or "masks" of a row is an image; other tools use these keys for other things."""
    return isinstance(value, bytes | TarImage) or (isinstance(value, str) and ".tar#" in value)


def read_truth(row: dict) -> dict[str, bytes]:
    """Return the bytes of the ground truth images of a row, {"depth": ..., "masks": ...}."""
    return {name: _truth(row[name]) for name in TRUTH if is_truth(row.get(name))}


def _truth(value: bytes | str | TarImage) -> bytes:
    return value if isinstance(value, bytes) else image_ref(value).read()

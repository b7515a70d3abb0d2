"""Screening of rows, whose content is other people's: what they must not name or contain is rejected."""

from collections.abc import Iterable, Iterator

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.allowed import refuse_location
from lumina_cli.core.io.row_checks import check_text
from lumina_cli.core.shards.tar import TRUTH, RejectedImage, TarImage


def screen_rows(rows: Iterable[dict], folder: str = "") -> Iterator[dict]:
    """Yield the rows of a SOURCE in `folder`; the "image" of an unusable one is a RejectedImage.

    Unusable is a row whose image, depth or masks are at a location that rows must not name (io/allowed.py),
    and one with a caption that UTF-8 cannot encode.
    """
    for row in rows:
        why = _find_fault(row, folder)
        if why is None:
            yield row
            continue
        image = row.get("image")
        place = str(image) if isinstance(image, str | TarImage) else ""
        yield row | {"image": RejectedImage(place, *why)}


def _find_fault(row: dict, folder: str) -> tuple[str, str] | None:
    """Return (code, reason) of an unusable row, or None."""
    image = row.get("image")
    if isinstance(image, RejectedImage):
        return None
    if isinstance(image, str) and (why := refuse_location(image, folder)):
        return why
    for name in TRUTH:
        value = row.get(name)
        if isinstance(value, str) and ".tar#" in value and (why := refuse_location(value, folder)):
            return why[0], f"{name!r} of the row is {value}: {why[1]}"
    try:
        check_text(row, "the row")
    except LuminaError as error:
        return "bad_caption", str(error)
    return None

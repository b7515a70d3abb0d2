"""Pages: HTML that needs nothing beside it, with pictures and plots inside.

What a page shows is other people's text: the templates escape all of it, and a page's own policy runs no
script but the one that is written here, and loads nothing.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.registry import ASSETS

TEMPLATES = ASSETS / "pages"
MADE_BY = b'<meta name="generator" content="lumina">'
FEW = 200  # values of which all are shown as they are, the outliers, too
LEAST = 5  # bars
THUMB = 320  # pixels of the longer side of a picture in a page


def write_page(path: str | Path, template: str, **values) -> Path:
    """Write the page of a template ("stats.html") with these values, whole or not at all; return its path.

    LuminaError where something else than a page of ours is there.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        with disk_errors(path):
            ours = path.is_file() and not path.is_symlink() and _is_ours(path)
        if not ours:
            raise LuminaError(f"{path} is there, and is no page of lumina; name another file")
    text = render_page(template, **values)
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n", errors="replace")
    return path


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MADE_BY in file.read(1024)


def render_page(template: str, **values) -> str:
    """Return the page of a template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["number"] = format_number
    return pages.get_template(template).render(**values, **inline_script(TEMPLATES / "page.js"))


def inline_script(path: Path) -> dict:
    """Return "script", as it is, and "script_hash", the only one that a page's policy then lets run."""
    from markupsafe import Markup

    script = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_hash": f"sha256-{digest}"}


def thumbnail(picture: Image.Image, longest: int = THUMB) -> str:
    """Return a small copy of an RGB picture as a data: URL."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def format_number(value) -> str:
    """Return a number as people read it: 12,345 or 0.1235; what is no number as text, nothing as a dash."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{round(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def histogram(values: np.ndarray, bins: int = 32, mark: float | None = None) -> dict | None:
    """Return a histogram for a page: bars of (label, count, share of the tallest, beyond `mark` or not).

    Few values get few bars, about the square root of their number; `bins` at most. "cut" says that the last
    bar takes what is above the 99.5th percentile, too. Bars of whole numbers begin and end at whole numbers.
    None where there are no values.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    if len(values) < FEW or values.max() - low <= bins:
        high = float(values.max())
    counted = np.array_equal(values, np.round(values))
    if counted:
        high = float(np.ceil(high))
    if mark is not None and low < mark < values.max():
        high = max(high, mark)
    if high <= low:
        low, high = (0.9 * low, 1.1 * low) if low > 0 and not counted else (low - 0.5, low + 0.5)
    few = min(bins, max(LEAST, math.ceil(math.sqrt(len(values)))))
    whole = counted and high - low <= min(bins, 2 * few)  # a bar for each number
    if whole:
        edges = np.arange(values.min(), np.floor(high) + 2) - 0.5
    elif counted:  # a bar for each `step` numbers
        step = math.ceil((high - low + 1) / few)
        edges = np.arange(low, high + step + 0.5, step)
    else:
        edges = np.linspace(low, high, few + 1)
    if not whole and mark is not None and edges[0] < mark < edges[-1]:
        edges[np.abs(edges[1:-1] - mark).argmin() + 1] = mark
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    tallest = counts.max()
    bars = [
        {"label": _label(a, b, counted), "count": int(n), "height": float(n / tallest)}
        | {"beyond": mark is not None and float(a) >= mark}
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    ends = {"from": float(f"{edges[0]:.3g}"), "to": float(f"{edges[-1]:.3g}")}
    if counted:
        ends = {"from": int(values.min()), "to": int(min(high, values.max()))}
    return {
        "bars": bars,
        "low": float(values.min()),
        "high": float(values.max()),
        "count": len(values),
        "cut": bool(values.max() > high),
    } | ends


def _label(low: float, high: float, counted: bool) -> str:
    """What a bar holds: "3", "3 to 5" or "0.1 to 0.2"."""
    if not counted:
        return f"{format_number(float(low))} to {format_number(float(high))}"
    first, last = math.ceil(low), math.ceil(high) - 1
    return format_number(first) if first == last else f"{format_number(first)} to {format_number(last)}"


def pick_evenly(items: Sequence, count: int) -> list:
    """Return up to `count` of the items, spread evenly over them, in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]

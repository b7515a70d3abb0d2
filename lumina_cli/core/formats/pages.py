"""Pages: HTML that needs nothing beside it, with pictures and plots inside.

What a page shows is other people's text: the templates escape all of it, and a page's own policy runs no
script but the one that is written here, and loads nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_cli.core.formats.atomic import atomic_write, disk_errors
from lumina_cli.core.registry import ASSETS

TEMPLATES = ASSETS / "pages"
THUMB = 320  # pixels of the longer side of a picture in a page


def write_page(path: str | Path, template: str, **values) -> Path:
    """Write the page of a template ("stats.html") with these values, whole or not at all; return its path."""
    path = Path(path)
    text = render_page(template, **values)
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n", errors="replace")
    return path


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
    pages.filters["figure"] = figure
    return pages.get_template(template).render(**values, **script_of(TEMPLATES / "page.js"))


def script_of(path: Path) -> dict:
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


def figure(value) -> str:
    """Return a number as people read it: 12,345 or 0.1235; what is no number as text, nothing as a dash."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{round(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def histogram(values: np.ndarray, bins: int = 32, mark: float | None = None) -> dict | None:
    """Return a histogram for a page: bars of (low, high, count, share of the tallest, beyond `mark` or not).

    The last bar takes everything above the 99.5th percentile. None where there are no values.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    if values.max() - low <= bins:
        high = float(values.max())
    if mark is not None and low < mark < values.max():
        high = max(high, mark)
    whole = np.array_equal(values, np.round(values)) and high - low <= bins
    if high <= low:
        low, high = (0.9 * low, 1.1 * low) if low > 0 else (low - 0.5, low + 0.5)
    edges = np.linspace(low, high, bins + 1)
    if whole:  # a bar for each number
        edges = np.arange(values.min(), np.floor(high) + 2) - 0.5
    elif mark is not None and edges[0] < mark < edges[-1]:
        edges[np.abs(edges[1:-1] - mark).argmin() + 1] = mark
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    tallest = counts.max()
    bars = [
        {"low": float(a), "high": float(b), "count": int(n), "height": float(n / tallest)}
        | {"beyond": mark is not None and float(a) >= mark}
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    ends = {"from": float(edges[0] + whole / 2), "to": float(edges[-1] - whole / 2)}
    return {
        "bars": bars,
        "low": float(values.min()),
        "high": float(values.max()),
        "count": len(values),
    } | ends


def evenly(items: Sequence, count: int) -> list:
    """Return up to `count` of the items, spread evenly over them, in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]

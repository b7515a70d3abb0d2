"""Self-contained HTML pages with embedded images and plots.

Pages show untrusted text. The templates therefore escape every value, and the Content-Security-Policy of a
page allows only the inline script of this package and no request to any server.
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
FEW = 200  # below this number of values, outliers are not clipped
LEAST = 5  # fewest bars of a histogram
THUMB = 320  # longer side of an embedded image, in pixels


def write_page(path: str | Path, template: str, **values) -> Path:
    """Render a template ("stats.html") to a file, whole or not at all; return its path.

    Raises:
        LuminaError: if `path` exists and was not written by this function.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        with disk_errors(path):
            ours = path.is_file() and not path.is_symlink() and _is_ours(path)
        if not ours:
            raise LuminaError(f"refusing to overwrite {path}: lumina did not write it; choose another file")
    text = render_page(template, **values)
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n", errors="replace")
    return path


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MADE_BY in file.read(1024)


def render_page(template: str, **values) -> str:
    """Return the HTML of a template."""
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
    """Return the script of a page and its hash; the policy of the page allows no other script."""
    from markupsafe import Markup

    script = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_hash": f"sha256-{digest}"}


def thumbnail(image: Image.Image, longest: int = THUMB) -> str:
    """Return a small JPEG copy of an RGB image as a data: URL; `longest` is its longer side in pixels."""
    small = image.copy()
    small.thumbnail((longest, longest))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def format_number(value) -> str:
    """Format a number for readers: 12,345 or 0.1235. None and NaN become a dash, other values their text."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{round(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def histogram(values: np.ndarray, bins: int = 32, mark: float | None = None) -> dict | None:
    """Return the data of a histogram, or None without finite values.

        values    any shape; NaN and infinity are dropped
        bins      largest number of bars; few values get about the square root of their number
        mark      a threshold: bars at or above it have "beyond" set
        returns   {"bars": [{label, count, height, beyond}], low, high, count, cut, from, to}; height is
                  relative to the tallest bar; "cut": the last bar includes the top 0.5 percent

    Bars of integers begin and end at integers.
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
    whole = counted and high - low <= min(bins, 2 * few)  # a bar per integer
    if whole:
        edges = np.arange(values.min(), np.floor(high) + 2) - 0.5
    elif counted:  # a bar per `step` integers
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
    """Return the range of a bar: "3", "3 to 5" or "0.1 to 0.2"."""
    if not counted:
        return f"{format_number(float(low))} to {format_number(float(high))}"
    first, last = math.ceil(low), math.ceil(high) - 1
    return format_number(first) if first == last else f"{format_number(first)} to {format_number(last)}"


def pick_evenly(items: Sequence, count: int) -> list:
    """Return up to `count` items at even distances, in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]

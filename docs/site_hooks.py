"""MkDocs hooks: links to files outside the site, and labels for the stacked tables of narrow screens."""

import posixpath
import re
from itertools import cycle

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
HEADER = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replace links that lead out of docs/ with their text: the site does not have those files."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        return match[1] if target.startswith("..") or target.endswith(".py") else match[0]

    return LINK.sub(replace, markdown)


def on_page_content(html: str, page, **_) -> str:
    """Mark the reference pages, whose table cells carry the name of their column: see extra.css."""
    if not page.file.src_uri.startswith("reference/"):
        return html

    def label(match: re.Match) -> str:
        names = cycle(HEADER.findall(match[0]))
        return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(names)}"', match[0])

    return f'<div class="reference">{TABLE.sub(label, html)}</div>'

"""The site builds without a warning, its links resolve, and it loads nothing from another host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """Anchors, links and loaded files of one HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if attributes.get(LOADED.get(tag)):
            self.loaded.append(attributes[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def outside(address: str) -> bool:
    return re.match(r"[a-z]+:|//", address) is not None and not address.startswith("data:")


def test_internal_links_and_anchors_resolve(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if outside(link) or link.startswith("data:"):
                continue
            address, anchor = urldefrag(unquote(link))
            target = site / address.lstrip("/") if address.startswith("/") else path.parent / address
            target = path if not address else target.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_pages_load_nothing_from_another_host(site, pages):
    assert len(pages) > 10
    assert not [
        f"{path.name}: {file}" for path, page in pages.items() for file in page.loaded if outside(file)
    ]
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_generators_are_not_part_of_the_site(site):
    assert not list(site.rglob("*.py"))

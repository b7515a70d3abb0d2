"""Gallery: entries of images of any program, and escaping of untrusted text."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import save_image
from lumina_cli.core.sampling.output.gallery import write_gallery
from lumina_cli.core.sampling.output.metadata import GenerationRecord, to_metadata

GREEN = Image.new("RGB", (32, 32), "green")
HOSTILE = """</p><script>alert(1)</script><img src=x onerror="alert(1)"> ' " {{ 7*7 }} {% raw %} 红色"""


class Page(HTMLParser):
    """The tags, links, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, tag, name):
        return [value for own, key, value in self.attributes if (own, key) == (tag, name)]


def origin(prompt="two cups", **changes) -> dict:
    record = GenerationRecord(
        prompt=prompt, seed=7, number=0, model="nano", size=(32, 32), system="real", plan=Plan("dpm", 9)
    )
    return to_metadata(record) | changes


def page(folder) -> Page:
    return Page(write_gallery(folder).read_text(encoding="utf-8"))


def test_gallery_links_images_in_order_with_their_plan(tmp_path):
    for number in (10, 9, 1):
        save_image(GREEN, tmp_path / f"p {number}.png", origin(f"cup {number}"))
    found = page(tmp_path)
    assert found.values("img", "src")[:3] == ["./p%201.png", "./p%209.png", "./p%2010.png"]
    assert found.values("img", "alt")[:3] == ["cup 1", "cup 9", "cup 10"]
    assert found.texts.count("dpm") == found.texts.count("nano") == 3
    assert "nano, 32x32, seed 7, dpm 9" in found.texts
    assert f"lumina sample --from '{tmp_path}/p 1.png'" in found.texts
    assert "solver dpm" in found.values("figure", "data-words")[0]


def test_hostile_text_is_escaped(tmp_path):
    save_image(
        GREEN, tmp_path / "a'\"<b>&.png", origin(HOSTILE, model=HOSTILE, negative=HOSTILE, system=HOSTILE)
    )
    found = page(tmp_path)
    assert found.tags.count("script") == 1
    assert found.tags.count("img") == 2  # the image, and the enlarged one
    assert not [key for _, key, _ in found.attributes if key.startswith("on")]
    assert found.texts.count(HOSTILE) == 5
    assert found.values("img", "src")[0] == "./a%27%22%3Cb%3E%26.png"
    assert "lumina sample --from" in "".join(found.texts)


def test_policy_allows_only_the_script_of_the_page(tmp_path):
    save_image(GREEN, tmp_path / "a.png", origin())
    text = write_gallery(tmp_path).read_text(encoding="utf-8")
    policy = re.search(r'Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not re.search(r"https?://", text)


def test_gallery_shows_images_without_metadata(tmp_path):
    save_image(GREEN, tmp_path / "plain.jpg")
    save_image(GREEN, tmp_path / "sheet.png", {"grid": {"guidance": [1, None]}, "of": "two cups"})
    save_image(
        GREEN, tmp_path / "edit.avif", origin(edit={"init": "photo.jpg", "strength": 0.5, "pixels": "f"})
    )
    save_image(
        GREEN, tmp_path / "strange.webp", {"prompt": 3, "plan": [], "size": {}, "grid": "no", "edit": 1}
    )
    found = page(tmp_path)
    assert found.values("img", "src")[:4] == ["./sheet.png", "./strange.webp", "./edit.avif", "./plain.jpg"]
    assert {"1, off", "photo.jpg", "0.5", "plain.jpg"} <= set(found.texts)


def test_broken_files_are_reported_and_omitted(tmp_path):
    save_image(GREEN, tmp_path / "a.png", origin())
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "c.txt").write_text("no picture")
    notes = []
    text = write_gallery(tmp_path, note=notes.append).read_text()
    assert [line.split(":")[0] for line in notes] == ["not in the gallery"]
    assert "1 image<" in text
    assert "b.png" not in text


def test_gallery_is_deterministic(tmp_path):
    save_image(GREEN, tmp_path / "a.png", origin())
    first = write_gallery(tmp_path).read_bytes()
    assert write_gallery(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "gallery.html"]


@pytest.mark.parametrize(
    ("name", "message"), [("gone", "is not a folder of images"), (".", "contains no images for a")]
)
def test_empty_gallery_is_a_one_line_error(name, message, tmp_path):
    with pytest.raises(LuminaError, match=message):
        write_gallery(tmp_path / name)


@pytest.mark.skipif(not shutil.which("node"), reason="node is not on this machine")
def test_the_script_is_javascript(tmp_path):
    from lumina_cli.core.registry import ASSETS

    assert subprocess.run(["node", "--check", ASSETS / "gallery.js"], capture_output=True).returncode == 0

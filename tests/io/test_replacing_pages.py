"""A page replaces an earlier page, and no other file."""

import os
import tracemalloc

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.html import write_page

VALUES = {"title": "T", "subtitle": "S", "cards": [], "levels": [], "langs": [], "shown": 0, "of": 0}


def test_a_page_is_written_again(tmp_path):
    path = tmp_path / "p.html"
    first = write_page(path, "page.html", **VALUES).read_bytes()
    assert write_page(path, "page.html", **(VALUES | {"title": "other"})).read_bytes() != first


def test_only_the_beginning_of_a_large_file_is_read(tmp_path):
    path = tmp_path / "p.html"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(LuminaError, match="lumina did not write it"):
        write_page(path, "page.html", **VALUES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, peak


@pytest.mark.parametrize("kind", ["tar", "another page", "pipe", "folder", "link", "link to nothing"])
def test_nothing_else_is_replaced(tmp_path, kind):
    path, aside = tmp_path / "p.html", tmp_path / "aside"
    make = {
        "tar": lambda: path.write_bytes(b"a tar"),
        "another page": lambda: path.write_text("<!doctype html><title>mine</title>"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: (write_page(aside, "page.html", **VALUES), path.symlink_to(aside)),
        "link to nothing": lambda: path.symlink_to(tmp_path / "gone"),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(
        LuminaError, match=r"refusing to overwrite .*p\.html: lumina did not write it; choose another file"
    ):
        write_page(path, "page.html", **VALUES)
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)

"""Each extra that a message or a page names exists in pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest

import lumina_cli
from lumina_cli.core.errors import MissingDependency
from lumina_cli.core.io.remote import EXTRAS, open_filesystem

ROOT = Path(lumina_cli.__file__).parents[1]
NAMED = re.compile(r"lumina-cli\[([a-z0-9,-]+)\]")
KNOWN = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_extras_that_are_named_exist():
    places = [*(ROOT / "lumina_cli").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = {
        (path.name, extra)
        for path in places
        for names in NAMED.findall(path.read_text(encoding="utf-8"))
        for extra in names.split(",")
    }
    assert len(found) > 3
    assert not {(path, extra) for path, extra in found if extra not in KNOWN}


def test_the_extras_of_url_schemes_exist():
    assert set(EXTRAS.values()) <= KNOWN
    assert EXTRAS["gs"] == EXTRAS["gcs"] == "gcs"


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://bucket/x", "gcs"), ("gcs://b/x", "gcs"), ("s3a://b/x", "s3")]
)
def test_a_missing_client_names_its_extra(url, extra, monkeypatch):
    def missing(*_args, **_settings):
        raise ImportError("Please install the client")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingDependency, match=rf"pip install 'lumina-cli\[{extra}\]'"):
        open_filesystem(url)

"""The fixture of the tests of `lumina caption`."""

from functools import partial

import pytest
from tiny_captioner import run_caption


@pytest.fixture
def lumina(capsys):
    """Return a function that runs `lumina caption`; see `run_caption`."""
    return partial(run_caption, capsys)

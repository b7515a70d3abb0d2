"""Models that ship custom code: the code never runs and transformers never prompts on stdin."""

import json

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.engines import open_engine
from lumina_cli.core.unicap.scoring.clip import open_scorer

OPENERS = {
    "engine": lambda folder: open_engine("transformers", str(folder), "cpu", None, 1),
    "scorer": lambda folder: open_scorer(f"clip:{folder}", "cpu"),
}


@pytest.fixture
def model_with_code(tmp_path):
    """A folder whose configuration asks for the class of a file beside it."""
    classes = {name: f"theirs.{name}" for name in ("AutoConfig", "AutoModel", "AutoProcessor")}
    settings = {"model_type": "theirs", "architectures": ["Theirs"], "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    return tmp_path


@pytest.mark.parametrize("opened", OPENERS)
def test_code_of_a_model_is_not_run(model_with_code, opened, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # as `yes | lumina ...` answers
    with pytest.raises(LuminaError, match="requires custom code, which lumina never runs"):
        OPENERS[opened](model_with_code)
    assert not (model_with_code / "ran").exists()

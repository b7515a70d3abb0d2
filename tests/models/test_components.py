"""Locating the components that training starts from."""

from pathlib import Path

import pytest

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models import components
from lumina_cli.core.models.components import ASSETS, find_components, find_transformer


def test_names_of_models_take_precedence_over_folders(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert find_components("nano") == ASSETS / "nano"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_folder)
    assert find_components("run") == Path("run/model")
    assert find_components(str(tiny_folder)) == tiny_folder
    with pytest.raises(LuminaError, match="nano has no vae, text_encoder, tokenizer"):
        find_components("./nano")
    with pytest.raises(UsageError, match="frozen: unknown model 'nanoo'; did you mean 'nano'"):
        find_components("nanoo")


def test_a_name_is_never_a_path_into_the_assets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="frozen: unknown model"):
        find_components("nano/../nano")


def test_an_embedded_model_without_transformer_provides_its_frozen_components(tmp_path, monkeypatch):
    monkeypatch.setattr(components, "ASSETS", tmp_path)
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / "nano" / part).mkdir(parents=True)
    assert find_components("nano") == tmp_path / "nano"
    (tmp_path / "nano" / "vae").rmdir()
    with pytest.raises(LuminaError, match="has no vae"):
        find_components("nano")


def test_a_transformer_is_found_in_a_run_a_model_folder_or_its_own_folder(tmp_path, tiny_folder):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_folder)
    assert find_transformer(str(tmp_path / "run")) == tmp_path / "run" / "model" / "transformer"
    assert find_transformer(str(tiny_folder)) == tiny_folder / "transformer"
    assert find_transformer(str(tiny_folder / "transformer")) == tiny_folder / "transformer"
    with pytest.raises(LuminaError, match="model 'nanoo' is unknown; did you mean 'nano'"):
        find_transformer("nanoo")

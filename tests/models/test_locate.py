"""Model folders are found by name, path and run folder, whole or in part, and errors name what is missing."""

import shutil

import pytest

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models import locate
from lumina_cli.core.models.folder import ModelFolder, component_errors, default_plan
from lumina_cli.core.models.locate import (
    ASSETS,
    FROZEN_COMPONENTS,
    ModelChoice,
    find_frozen,
    find_model,
    find_transformer,
    missing_files,
    newest_model,
)


def test_frozen_components_are_found_by_name_before_any_folder(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert find_frozen("nano") == ASSETS / "nano"
    assert find_frozen(str(tiny_folder)) == tiny_folder
    with pytest.raises(LuminaError, match="nano has no vae, text_encoder, tokenizer; frozen= names a model"):
        find_frozen("./nano")
    with pytest.raises(UsageError, match="frozen: unknown model 'nanoo'; did you mean 'nano'"):
        find_frozen("nanoo")


def test_frozen_components_are_not_found_by_a_path_into_the_assets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="frozen: unknown model"):
        find_frozen("nano/../nano")


def test_an_embedded_model_without_transformer_gives_its_frozen_components(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "ASSETS", tmp_path)
    for component in FROZEN_COMPONENTS:
        (tmp_path / "nano" / component).mkdir(parents=True)
    assert find_frozen("nano") == tmp_path / "nano"
    with pytest.raises(LuminaError, match="nano is not a model folder; it must contain transformer/, vae/"):
        find_model("nano")
    (tmp_path / "nano" / "vae").rmdir()
    with pytest.raises(LuminaError, match="has no vae"):
        find_frozen("nano")


def test_a_run_folder_stands_for_its_newest_model(tmp_path, tiny_folder):
    run = tmp_path / "run"
    run.mkdir()
    assert newest_model(run) == run
    (run / "model").symlink_to(tiny_folder)
    assert newest_model(run) == find_model(run) == find_frozen(str(run)) == run / "model"
    assert find_transformer(str(run)) == run / "model" / "transformer"


def test_a_transformer_is_found_in_a_model_folder_and_in_its_own(tiny_folder):
    assert find_transformer(str(tiny_folder)) == tiny_folder / "transformer"
    assert find_transformer(str(tiny_folder / "transformer")) == tiny_folder / "transformer"
    with pytest.raises(LuminaError, match="model 'nanoo' is unknown; did you mean 'nano'"):
        find_transformer("nanoo")


def test_missing_shards_of_an_index_are_named(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "m")
    assert missing_files(tmp_path / "m") == []
    index = tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    assert missing_files(tmp_path / "m") == ["vae/one.safetensors", "vae/two.safetensors"]
    index.write_text('{"weight_map": 3}')
    with pytest.raises(LuminaError, match=r"index.json is not an index of safetensors weights"):
        missing_files(tmp_path / "m")


def test_a_damaged_plan_is_named(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "plan.json").write_text('{"stpes": 3}')
    with pytest.raises(LuminaError, match=r"m/plan.json: a plan has no setting 'stpes'; did you mean"):
        default_plan(tmp_path / "m")
    (tmp_path / "m" / "plan.json").write_text("{")
    with pytest.raises(LuminaError, match=r"m/plan.json cannot be read: "):
        ModelFolder(ModelChoice("m", tmp_path / "m"))


def test_any_error_of_a_component_becomes_one_line(tmp_path):
    with pytest.raises(LuminaError) as caught, component_errors(tmp_path / "vae"):
        raise RuntimeError("first\nsecond")
    assert str(caught.value) == f"{tmp_path / 'vae'} cannot be read: first"
    with pytest.raises(LuminaError, match="cannot be read: KeyError"), component_errors(tmp_path / "vae"):
        raise KeyError

"""Model folders are found by path and run folder, and errors name what is missing or damaged."""

import shutil

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.folder import ModelFolder, component_errors, default_plan
from lumina_cli.core.models.layout import missing_files, newest_model
from lumina_cli.core.models.locate import ModelChoice, find_model


def test_a_run_folder_stands_for_its_newest_model(tmp_path, tiny_folder):
    run = tmp_path / "run"
    run.mkdir()
    assert newest_model(run) == run
    (run / "model").symlink_to(tiny_folder)
    assert newest_model(run) == find_model(run) == run / "model"


def test_missing_shards_of_an_index_are_named(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "m")
    assert missing_files(tmp_path / "m") == []
    index = tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    assert missing_files(tmp_path / "m") == ["vae/one.safetensors", "vae/two.safetensors"]
    index.write_text('{"weight_map": 3}')
    with pytest.raises(LuminaError, match=r"index.json does not contain a weight_map"):
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

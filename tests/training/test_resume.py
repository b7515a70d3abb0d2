"""The settings that `lumina train --resume` uses."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.training.nano import detector
from lumina_cli.core.training.resume import differences


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    random = np.random.default_rng(0)
    for name in ("rows", "others"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for i in range(8):
                pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{name}{i}.png")
                file.write(
                    json.dumps({"image": f"{name}{i}.png", "captions": {"en": {"short": "red"}}}) + "\n"
                )
    stage = {"size": 64, "steps": 2, "batch": 2, "lr": 1e-3, "system": "empty"}
    values = {
        "model": str(tiny_folder), "frozen": str(tiny_folder), "data": str(tmp_path / "rows.jsonl"),
        "precision": "fp32", "log_every": 1, "validation": {"samples": 0}, "stages": {"low": stage, "hq": stage},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "tiny.yaml")


@pytest.fixture
def started(recipe, tmp_path, capsys):
    """A run whose stage low is finished, with data and steps that differ from the recipe."""
    words = [f"out={tmp_path / 'run'}", f"data={tmp_path / 'others.jsonl'}", "stages.low.steps=3"]
    assert run(["train", recipe, "--stage", "low", *words]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def saved(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def stages_of(capsys):
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(row["stage"], row["stage_step"]) for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_resume_keeps_the_settings_of_the_run(named, started, recipe, tmp_path, capsys):
    before = saved(started)
    assert before["stage"] == "low"
    assert run(["train", *[recipe] * named, f"out={started}", "--resume", "--stage", "all"]) == 0
    assert saved(started) == before | {"stage": "all"}
    assert before["data"] == str(tmp_path / "others.jsonl")
    assert stages_of(capsys) == [("hq", 1), ("hq", 2)]


def test_a_resume_reports_the_settings_that_differ_from_the_recipe(started, recipe, capsys):
    assert run(["train", recipe, f"out={started}", "--resume", "--dry-run"]) == 0
    told = (
        f"resuming with {started}/recipe.yaml, which differs from {recipe} in data, stage, stages.low.steps\n"
    )
    done = f"nothing left to train in {started}: stage low is complete; for other stages add `--stage all`, "
    assert capsys.readouterr().err == told + done + "or raise its steps\n"
    assert run(["train", f"out={started}", "--resume", "--dry-run", "--stage", "hq"]) == 0
    assert capsys.readouterr().err.startswith(
        "resuming at step 3 with changed settings: stage from low to hq\n"
    )


def test_overrides_change_a_resumed_run(started, recipe, capsys):
    assert (
        run(f"train {recipe} out={started} --resume --stage all stages.low.steps=4 stages.hq.steps=1".split())
        == 0
    )
    assert stages_of(capsys) == [("low", 4), ("hq", 1)]
    assert [stage["steps"] for stage in saved(started)["stages"].values()] == [4, 1]


def test_the_next_stage_without_resume_uses_the_recipe(started, recipe, tmp_path, capsys):
    assert run(["train", recipe, f"out={started}", "--stage", "hq"]) == 0
    assert stages_of(capsys) == [("hq", 1), ("hq", 2)]
    assert saved(started)["data"] == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("words", [["nano"], ["model=nano"]])
def test_resuming_with_another_model_is_an_error(words, started, tiny_folder, capsys):
    before = saved(started)
    assert run(["train", *words, f"out={started}", "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"{started} trains the model {tiny_folder}, not nano; without RECIPE and model=" in error
    assert error.count("\n") == 1
    assert saved(started) == before


@pytest.mark.slow
def test_a_part_without_a_run_has_nothing_to_resume(started, capsys):
    assert run(["train", "nano-detector", f"out={started}", "scenes=24", "batch=4", "--resume"]) == 1
    assert f"{started} has nothing to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_nano_component_resumes_with_its_settings(tmp_path, capsys, monkeypatch):
    render = detector.render_images
    monkeypatch.setattr(detector, "render_images", lambda s, n, out: render(s, n, out, workers=1))
    monkeypatch.setattr(detector, "calibrate", lambda net, out: ({}, {"n": 1}))
    words = ["scenes=4", "batch=2", "steps=2", "width=16"]
    assert run(["train", "nano-detector", f"out={tmp_path}", *words]) == 0
    assert run(["train", "nano-detector", f"out={tmp_path}", "--resume", "steps=3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    settings = yaml.safe_load((tmp_path / "detector.yaml").read_text())
    assert [settings[name] for name in ("scenes", "batch", "steps", "width")] == [4, 2, 3, 16]


def test_differences_are_dotted_names():
    one = {"a": 1, "b": {"c": 2, "d": 3}, "e": {}}
    assert differences(one, one) == {}
    found = differences(one, {"a": 2, "b": {"c": 2, "d": 4, "f": 5}, "e": 1})
    assert found == {"a": (1, 2), "b.d": (3, 4), "b.f": (None, 5), "e": ({}, 1)}


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_training_in_several_processes_is_an_error(option, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", recipe, f"out={tmp_path / 'run'}", *option]) == 2
    told = "lumina train: training in several processes is not supported yet; start one, without torchrun\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(["train", recipe, f"out={tmp_path / 'run'}", "--dry-run"]) == 0

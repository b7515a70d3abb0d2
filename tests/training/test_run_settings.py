"""A run is what it was asked to be: saved settings, stages, locks, schedules, relative paths, default size."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import yaml
from PIL import Image

from lumina_cli.core.dataset.training_data import TrainingData
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.locate import choose_model
from lumina_cli.core.recipe import load_recipe
from lumina_cli.core.training.config import Recipe, absolute_paths
from lumina_cli.core.training.loop import train_transformer
from lumina_cli.core.weights.run_folder import RunFolder


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    """A folder with a recipe, its data, and a run whose stage low is finished."""
    folder = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(8):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": {"en": {"short": "red"}}}) + "\n")
    (folder / "bad.jsonl").write_text('{"image": "none.png", "captions": {"en": {"short": "red"}}}\n' * 8)
    stage = {"size": 64, "steps": 2, "batch": 2, "lr": 1e-3, "system": "empty"}
    values = {
        "model": str(tiny_folder), "frozen": str(tiny_folder), "data": "rows.jsonl", "precision": "fp32",
        "log_every": 1, "checkpoint_every": 1, "validation": {"samples": 0},
        "stages": {"low": stage, "high": {**stage, "size": 128}, "hq": {**stage, "decay": 1.0}},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture
def started(home, tmp_path, lumina):
    """A copy of a run whose stage low is finished."""
    if not (home / "run").exists():
        assert lumina(f"train {home / 'tiny.yaml'} out={home / 'run'} --stage low")[0] == 0
    return shutil.copytree(home / "run", tmp_path / "run")


def saved(run):
    return yaml.safe_load((run / "recipe.yaml").read_text())


def steps_of(rows):
    return [(row["stage"], row["stage_step"]) for row in rows if "loss" in row]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data=typo", "typo: no such source"),
        ("data=nano:some", "'some' is not a whole number"),
        ("data={home}/bad.jsonl", "images cannot be used"),
        ("frozen=nowhere", "frozen: unknown model 'nowhere'"),
        ("stages.low.captions.long=1", "no caption in en at level long"),
        ("stages.hq.keep_best=0.5", "keep_best=0.5 needs a 'score'"),  # of a stage that trains later
        ("stages.hq.langs.fr=1", "no caption in fr"),
        ("optimizer.name=muon", "was written by a different optimizer"),
    ],
)
def test_a_resume_with_settings_that_fail_leaves_the_saved_ones(words, message, started, home, lumina):
    before = (started / "recipe.yaml").read_text()
    words = words.format(home=home)
    code, _, err = lumina(f"train out={started} --resume --stage all stages.low.steps=3 {words}")
    assert code
    assert message in err
    assert "with changed settings" not in err
    assert (started / "recipe.yaml").read_text() == before
    code, rows, _ = lumina(f"train out={started} --resume stages.low.steps=3")
    assert code == 0
    assert steps_of(rows) == [("low", 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [("data=typo", "typo: no such source"), ("frozen=nowhere", "unknown model 'nowhere'")],
)
def test_a_dry_run_reports_changes_only_if_the_run_opens(words, message, started, lumina):
    code, _, err = lumina(f"train out={started} --resume --dry-run stages.low.steps=3 {words}")
    assert code
    assert message in err
    assert "with changed settings" not in err


def test_data_that_fails_is_not_saved_when_nothing_is_left_to_train(started, lumina):
    code, _, err = lumina(f"train out={started} --resume data=typo")
    assert (code, "with changed settings" in err) == (1, False)
    assert saved(started)["data"].endswith("rows.jsonl")
    assert lumina(f"train out={started} --resume")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("again", ["", "{recipe}"])
def test_a_resume_keeps_the_stage(again, started, home, lumina):
    recipe = again.format(recipe=home / "tiny.yaml")
    code, rows, err = lumina(f"train {recipe} out={started} --resume stages.low.steps=4")
    assert code == 0
    assert steps_of(rows) == [("low", 3), ("low", 4)]
    assert saved(started)["stage"] == "low"
    code, rows, err = lumina(f"train out={started} --resume")
    assert "stage low is complete; for other stages add `--stage all`" in err
    assert steps_of(rows) == []
    code, rows, err = lumina(f"train out={started} --resume --stage high")
    assert steps_of(rows) == [("high", 1), ("high", 2)]
    code, rows, err = lumina(f"train out={started} --resume --stage all")
    assert steps_of(rows) == [("hq", 1), ("hq", 2)]


def test_an_interrupted_stage_resumes_alone(home, tmp_path, lumina):
    recipe = absolute_paths(load_recipe(home / "tiny.yaml", Recipe, ["stages.low.steps=4"]), home)
    rows = train_transformer(recipe, tmp_path / "run", stage="low", open_data=TrainingData)
    next(row for row in rows if row.get("step") == 2)
    rows.close()
    _, rows, _ = lumina(f"train out={tmp_path / 'run'} --resume")
    assert steps_of(rows) == [("low", 3), ("low", 4)]


def test_a_second_training_in_a_folder_is_refused(home, tmp_path, lumina):
    recipe, out = home / "tiny.yaml", tmp_path / "run"
    settings = absolute_paths(load_recipe(recipe, Recipe), home)
    rows = train_transformer(settings, out, open_data=TrainingData)
    next(row for row in rows if row.get("step") == 1)
    for words in (f"{recipe}", f"{recipe} --stage hq", "--resume"):
        code, found, err = lumina(f"train {words} out={out}")
        assert (code, found) == (1, [])
        assert err == f"lumina train: {out} is being written by another process; " + (
            "wait for it, or choose another folder\n"
        )
    rows.close()
    code, found, _ = lumina(f"train out={out} --resume")
    assert code == 0
    assert steps_of(found)[0] == ("low", 2)


def test_a_second_training_of_a_component_is_refused(tmp_path, lumina):
    with RunFolder(tmp_path / "parts").locked():
        code, _, err = lumina(f"train nano-detector out={tmp_path / 'parts'} scenes=4 batch=2 steps=2")
        assert (code, "is being written by another process" in err) == (1, True)
    assert not (tmp_path / "parts").exists()


def test_a_cache_is_built_by_one_process(home, tmp_path, lumina):
    words = f"train {home / 'tiny.yaml'} cache={tmp_path / 'cache'} stages.low.steps=1 --stage low"
    assert lumina(f"{words} out={tmp_path / 'a'}")[0] == 0
    folder = next((tmp_path / "cache").glob("*-64"))
    (folder / "progress.json").unlink()  # as if another run were building it
    with RunFolder(folder).locked():
        code, _, err = lumina(f"{words} out={tmp_path / 'b'}")
        assert (code, f"{folder} is being written by another process" in err) == (1, True)
    assert lumina(f"{words} out={tmp_path / 'b'}")[0] == 0


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (
            "stages.low.steps=4",
            [
                "resuming at step 2 with changed settings: stages.low.steps from 2 to 4",
                "stage low continues after step 2 on the schedule of 4 steps, not of 2: the learning rate was "
                "0.001 and is now 0.001",
            ],
        ),
        (
            "stages.low.steps=4 stages.low.decay=1.0",
            [
                "resuming at step 2 with changed settings: stages.low.steps from 2 to 4, "
                "stages.low.decay from 0.0 to 1.0",
                "stage low continues after step 2 on the schedule of 4 steps, not of 2: the learning rate was "
                "0.001 and is now 0.0005",
            ],
        ),
        ("ema=0.5", ["resuming at step 2 with changed settings: ema from 0.999 to 0.5"]),
    ],
)
@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_a_longer_resume_states_its_schedule(words, notes, dry, started, lumina):
    code, _, err = lumina(f"train out={started} --resume {words} {dry}")
    assert code == 0
    assert err.splitlines()[: len(notes)] == notes


def test_settings_of_a_finished_stage_have_no_effect_and_that_is_reported(started, lumina):
    _, rows, _ = lumina(f"train out={started} --resume --stage all stages.hq.steps=1")
    assert steps_of(rows) == [("high", 1), ("high", 2), ("hq", 1)]
    _, rows, err = lumina(f"train out={started} --resume stages.low.steps=9 stages.hq.steps=3")
    assert steps_of(rows) == [("hq", 2), ("hq", 3)]
    assert "stage low is already trained; its changed settings have no effect\n" in err
    assert "stage hq continues after step 1 on the schedule of 3 steps, not of 1" in err


def test_relative_paths_work_from_another_working_folder(home, tmp_path, tiny_folder, lumina, monkeypatch):
    for name in ("rows.jsonl", "tiny.yaml", *(f"{i}.png" for i in range(8))):
        shutil.copy(home / name, tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    words = "data=rows.jsonl model=start frozen=start cache=latents --stage low"
    assert lumina(f"train tiny.yaml out=run {words}")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, rows, err = lumina(f"train out={tmp_path / 'run'} --resume stages.low.steps=3")
    assert (code, steps_of(rows)) == (0, [("low", 3)]), err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "elsewhere", "latents", "run", "start"
    ]  # fmt: skip
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_paths_in_a_recipe_are_found_next_to_it(home, tmp_path, lumina, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, rows, _ = lumina(f"train {home / 'tiny.yaml'} --dry-run")
    assert code == 0
    assert {row["data"] for row in rows} == {str(home / "rows.jsonl")}
    (tmp_path / "rows.jsonl").write_text((home / "bad.jsonl").read_text())  # the working folder comes first
    _, rows, _ = lumina(f"train {home / 'tiny.yaml'} --dry-run")
    assert {row["data"] for row in rows} == {str(tmp_path / "rows.jsonl")}


@pytest.mark.parametrize("data", ["nano:7?seed=1", "hf:owner/name", "s3://bucket/shards", "missing", "-"])
def test_what_is_not_a_relative_path_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nano", "lumina-image-2"):
        (tmp_path / name).mkdir()
    stage = {"size": 64, "steps": 1, "batch": 1, "lr": 1}
    recipe = Recipe(model="nano", frozen="lumina-image-2", data=data, stages={"low": stage})
    assert absolute_paths(recipe) == recipe
    (tmp_path / "shards").mkdir()
    found = absolute_paths(recipe.model_copy(update={"data": "shards?overlay=a,b"}))
    assert found.data == f"{tmp_path}/shards?overlay=a,b"
    found = absolute_paths(recipe.model_copy(update={"data": "shards?lines=first"}))
    assert found.data == f"{tmp_path}/shards?lines=first"


def test_a_cache_of_a_relative_path_is_still_used(home, tmp_path, lumina, monkeypatch):
    monkeypatch.chdir(home)
    settings = absolute_paths(load_recipe("tiny.yaml", Recipe, [f"cache={tmp_path}", "stages.low.steps=1"]))
    relative = settings.model_copy(update={"data": "rows.jsonl"})
    earlier = TrainingData(relative, tmp_path, settings_frozen := settings_path(settings))
    assert TrainingData(settings, tmp_path, settings_frozen).folders != earlier.folders
    for folder in earlier.folders.values():
        folder.mkdir()
    assert TrainingData(settings, tmp_path, settings_frozen).folders == earlier.folders


def settings_path(settings):
    from lumina_cli.core.models.components import find_components

    return find_components(settings.frozen)


@pytest.mark.parametrize("resume", ["", " --resume"])
def test_an_interrupted_run_names_its_folder(resume, home, tmp_path, lumina, monkeypatch):
    monkeypatch.chdir(tmp_path)
    update = "lumina_cli.core.training.trainer.Trainer.update"
    original = __import__("lumina_cli.core.training.trainer", fromlist=["Trainer"]).Trainer.update

    def interrupted(*arguments):
        found = original(*arguments)
        signal.raise_signal(signal.SIGINT)
        return found

    if resume:
        assert lumina(f"train {home / 'tiny.yaml'} --stage low")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(update, interrupted)
        words = "--resume out=runs/tiny stages.low.steps=4" if resume else str(home / "tiny.yaml")
        code, _, err = lumina(f"train {words}")
    assert code == 130
    lines = err.splitlines()
    assert "stopping after this step, with a checkpoint; another Ctrl-C stops at once, without one" in lines
    out = os.path.join("runs", "tiny")
    way = "rerun the same command to resume" if resume else f"resume with `lumina train out={out} --resume`"
    assert lines[-1] == f"lumina train: interrupted; {way}"
    assert lumina("doctor --no-such-option")[2].count("resume") == 0
    code, rows, _ = lumina("train out=runs/tiny --resume")
    assert code == 0
    assert steps_of(rows)[0] == ("low", 4 if resume else 2)


def test_a_run_draws_at_the_size_that_it_was_trained_at(started, lumina, tmp_path):
    assert ModelFolder(choose_model(started)).default_size == (64, 64)
    code, rows, _ = lumina(f"sample 'a red ball' --model {started} --steps 1 --out {tmp_path / 'images'}")
    assert (code, rows[0]["size"]) == (0, "64x64")
    assert lumina(f"train out={started} --resume --stage high")[0] == 0
    assert ModelFolder(choose_model(started)).default_size == (128, 128)
    assert lumina(f"train out={started} --resume --stage all")[0] == 0
    assert ModelFolder(choose_model(started / "model")).default_size == (64, 64)


@pytest.mark.parametrize(("data", "total"), [("rows", 8), ("nano:12?seed=3", 12)])
def test_the_total_of_the_cache_is_known(data, total, home, tmp_path):
    recipe = absolute_paths(load_recipe(home / "tiny.yaml", Recipe), home)
    recipe = recipe.model_copy(update={"data": recipe.data if data == "rows" else data})
    seen = []
    rows = train_transformer(
        recipe, tmp_path / "run", stage="low", open_data=TrainingData,
        progress=lambda done, **known: seen.append((done, known)),
    )  # fmt: skip
    list(rows)
    known = {"total": total, "label": "cache latents"}
    assert seen == [(0, known), (total, known)]


def test_a_run_without_a_checkpoint_or_settings_is_not_left_behind(home, tmp_path, lumina):
    assert lumina(f"train {home / 'tiny.yaml'} out={tmp_path / 'run'} frozen=nowhere")[0] == 2
    assert not (tmp_path / "run").exists()
    recipe = absolute_paths(load_recipe(home / "tiny.yaml", Recipe), home)
    with pytest.raises(LuminaError, match="has no run to resume"):
        list(train_transformer(recipe, tmp_path / "run", resume=True, open_data=TrainingData))
    assert not (tmp_path / "run").exists()

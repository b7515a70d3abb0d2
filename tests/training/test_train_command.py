"""`lumina train`: rows, dry runs, progress bars, errors and interruptions."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from lumina_cli.cli import output
from lumina_cli.cli.app import run
from lumina_cli.core.recipe import load_recipe, packaged_recipes
from lumina_cli.core.training.config import Recipe
from lumina_cli.core.training.progress import describer


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    random = np.random.default_rng(0)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for i in range(20):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": {"en": {"short": "red"}}}) + "\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"model: {tiny_folder}\nfrozen: {tiny_folder}\ndata: {tmp_path / 'rows.jsonl'}\nprecision: fp32\n"
        "log_every: 2\nstages:\n  low: {size: 64, steps: 2, batch: 4, lr: 1e-3, system: empty}\n"
        "  hq: {size: 64, steps: 2, batch: 4, lr: 1e-3, system: empty}\n"
    )
    return str(path)


def rows_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_training_prints_rows_of_metrics_and_exports_a_model(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["train", recipe, f"out={out}", "stages.low.steps=4"]) == 0
    rows = rows_of(capsys)
    assert [(row["step"], row["stage"]) for row in rows if "loss" in row] == [
        (2, "low"),
        (4, "low"),
        (6, "hq"),
    ]
    assert rows[-1] == {"step": 6, "model": str(out / "model")}
    assert (out / "model" / "model_index.json").is_file()
    assert "steps: 4" in (out / "recipe.yaml").read_text()
    assert (
        run(["train", str(out / "recipe.yaml"), f"out={out}", "--resume"]) == 0
    )  # the resolved recipe is a recipe
    assert rows_of(capsys) == rows[-1:]


def test_stages_can_be_trained_one_at_a_time(recipe, tmp_path, capsys):
    for stage in ("low", "hq"):
        assert run(["train", recipe, "--stage", stage, f"out={tmp_path / 'run'}"]) == 0
        assert {row["stage"] for row in rows_of(capsys)[:-1]} == {stage}


def test_dry_run_shows_the_stages_and_trains_nothing(recipe, tmp_path, capsys):
    assert run(["train", recipe, "--dry-run", f"out={tmp_path / 'run'}"]) == 0
    rows = rows_of(capsys)
    assert [(row["stage"], row["pictures"], row["image_tokens"]) for row in rows] == [
        ("low", 8, 16),
        ("hq", 8, 16),
    ]
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_valid(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder without a run
    assert run(["train", "nano", "--dry-run"]) == 0
    rows = rows_of(capsys)
    assert [row["stage"] for row in rows] == ["low", "high", "hq"]
    assert {row["out"] for row in rows} == {os.path.join("runs", "nano")}


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if not name.startswith("sample/")])
def test_every_shipped_recipe_has_a_dry_run(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["train", name, "--dry-run"]) == 0
    assert {row["out"] for row in rows_of(capsys)} == {os.path.join("runs", name)}


@pytest.mark.parametrize("words", [[], ["out=runs/x"], ["--dry-run"], ["stages.low.steps=3", "model=nano"]])
def test_a_recipe_is_required(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lumina train: no recipe given; try `lumina train nano`. Packaged recipes: nano")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_resume_needs_a_recipe_or_out(capsys):
    assert run(["train", "--resume"]) == 2
    assert capsys.readouterr().err == "lumina train: --resume needs out=FOLDER, the run to resume\n"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data=nope"], 1, "nope: no such source"),
        (["data=nano:some"], 2, "'some' is not a whole number"),
        (["model=nono"], 1, "model 'nono' is unknown"),
        (["frozen=nono"], 2, "frozen: unknown model 'nono'"),
        (["--resume"], 1, "has no run to resume"),
    ],
)
def test_a_dry_run_reports_the_errors_of_training(recipe, tmp_path, capsys, words, code, message, dry):
    assert run(["train", recipe, f"out={tmp_path / 'run'}", *words, *dry]) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


@pytest.mark.parametrize("words", [[], ["nano-detector"], ["nano"]])
def test_a_dry_run_of_a_resume_requires_a_run(words, tmp_path, capsys):
    assert run(["train", *words, f"out={tmp_path / 'run'}", "--resume", "--dry-run"]) == 1
    assert "to resume; start " in capsys.readouterr().err


def test_resuming_a_finished_run_is_reported(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["train", recipe, f"out={out}"]) == 0
    assert capsys.readouterr().err == ""
    for option in ([], ["--dry-run"]):
        assert run(["train", f"out={out}", "--resume", *option]) == 0
        assert capsys.readouterr().err.startswith(f"nothing left to train in {out}: training is complete; ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_stage_steps_and_loss_during_training(recipe, tmp_path, monkeypatch):
    bars, err = [], Terminal()
    update = Progress.update

    def watch(bar, task, **changes):
        update(bar, task, **changes)
        bars.append((bar.tasks[0].description, bar.tasks[0].completed, bar.tasks[0].total))

    monkeypatch.setattr(Progress, "update", watch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", err)
    assert run(["train", recipe, f"out={tmp_path / 'run'}", "stages.low.steps=4"]) == 0
    steps = [(text.split()[:2], done, total) for text, done, total in bars if "loss" in text]
    assert (["low", "loss"], 2, 6) in steps
    assert steps[-1] == (["hq", "loss"], 6, 6)
    told = err.getvalue()
    assert all(f"step {step}, stage" in told for step in (2, 4, 6))
    assert str(tmp_path / "run" / "model") in told
    assert sys.stdout.getvalue() == ""


@pytest.mark.parametrize("stage", ["low", "hq"])
def test_the_progress_total_is_the_end_of_the_selected_stages(stage, recipe):
    settings = load_recipe(recipe, Recipe)
    row = {"step": 11, "stage_step": 1, "stage": stage, "loss": 0.5}
    selected = settings.model_copy(update={"stage": stage})
    assert describer(selected)(row) == (11, 12, f"{stage}  loss 0.5")
    assert describer(settings)(row)[1] == {"low": 14, "hq": 12}[stage]


def test_a_closed_pipe_writes_a_checkpoint(recipe, tmp_path, monkeypatch):
    lines = []

    class Head(io.StringIO):
        def write(self, text):
            lines.append(text)
            if len(lines) == 2:
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Head())
    monkeypatch.setattr(output, "silence_stdout", lambda: None)
    assert (
        run(["train", recipe, f"out={tmp_path / 'run'}", "stages.low.steps=100", "validation.samples=0"]) == 0
    )
    steps = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert steps == ["0000004"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["stages.low.stpes=3"], 2, "stages.low: no setting 'stpes'; did you mean 'steps'?"),
        (["stages.lwo.steps=3"], 2, "stages: no stage 'lwo'; did you mean 'low'?"),
        (["stages.low.size=100"], 2, "stages.low.size: '100': input should be a multiple of 64"),
        (["stages.low.steps=0.5"], 2, "stages.low.steps: '0.5' is not an integer"),
        (["part=detectr"], 2, "unknown part 'detectr'; did you mean 'detector'?"),
        (["--stage", "hg"], 2, "no stage 'hg'; did you mean 'hq'?"),
        (["--resume"], 1, "has no run to resume; start one without --resume"),
        (["data=nowhere.jsonl"], 1, "nowhere.jsonl: no such source"),
        (["another"], 2, "expected one recipe, not "),
    ],
)
def test_invalid_arguments_are_one_line_errors(recipe, tmp_path, capsys, words, code, message):
    assert run(["train", recipe, f"out={tmp_path / 'run'}", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("lumina train: ")
    assert error.count("\n") == 1


def test_an_unknown_recipe_suggests_a_known_one(capsys):
    assert run(["train", "nanoo"]) == 2
    assert "unknown recipe 'nanoo'; did you mean 'nano'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_resumes_and_an_interrupted_one_ends_with_130(recipe, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "lumina_cli", "train", recipe, f"out={out}"]
    command += ["stages.low.steps=100000", "checkpoint_every=5"]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        resume = ["--resume"] if out.exists() else []
        process = subprocess.Popen(
            [*command, *resume], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if json.loads(line).get("step", 0) >= (10 if number == signal.SIGKILL else 16):
                break
        process.send_signal(number)
        process.stdout.close()
        assert process.wait(60) == code, process.stderr.read()
        process.stderr.close()
    steps = sorted(int(p.name) for p in (out / "checkpoints").iterdir() if not p.name.startswith("."))
    assert steps[-1] >= 16

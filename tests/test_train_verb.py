import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run


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


def test_rows_of_metrics_come_out_and_a_model_is_left(recipe, tmp_path, capsys):
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


def test_one_stage_and_then_the_next(recipe, tmp_path, capsys):
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


def test_the_shipped_recipe_is_valid(capsys):
    assert run(["train", "nano", "--dry-run"]) == 0
    rows = rows_of(capsys)
    assert [row["stage"] for row in rows] == ["low", "high", "hq"]
    assert {row["out"] for row in rows} == {os.path.join("runs", "nano")}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["stages.low.stpes=3"], 2, "stages.low: no setting 'stpes'; did you mean 'steps'?"),
        (["stages.lwo.steps=3"], 2, "stages: no stage 'lwo'; did you mean 'low'?"),
        (["stages.low.size=100"], 2, "stages.low.size: '100': input should be a multiple of 64"),
        (["stages.low.steps=0.5"], 2, "stages.low.steps: '0.5' is not a whole number"),
        (["part=detectr"], 2, "unknown part 'detectr'; did you mean 'detector'?"),
        (["--stage", "hg"], 2, "no stage 'hg'; did you mean 'hq'?"),
        (["--resume"], 1, "has no run to resume; start one without --resume"),
        (["data=nowhere.jsonl"], 1, "nowhere.jsonl: no such source"),
        (["another"], 2, "one recipe at a time"),
    ],
)
def test_mistakes_are_one_line(recipe, tmp_path, capsys, words, code, message):
    assert run(["train", recipe, f"out={tmp_path / 'run'}", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("lumina train: ")
    assert error.count("\n") == 1


def test_an_unknown_recipe_is_named(capsys):
    assert run(["train", "nanoo"]) == 2
    assert "no recipe 'nanoo'; did you mean 'nano'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_and_an_interrupted_one_ends_with_130(recipe, tmp_path):
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

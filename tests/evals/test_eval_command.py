"""`lumina eval`: rows, messages and exit codes."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from lumina_cli.cli import app
from lumina_cli.core.evals.geneval.prompts import nano_prompts
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.nano.scene import KINDS, TINTS
from lumina_cli.core.registry import JUDGES
from lumina_cli.core.weights.fingerprint import fingerprint

SMALL = ("--per-task", "2", "--pictures", "2")


class Seen(NamedTuple):
    kind: str
    tint: str
    score: float
    box: tuple


class FakeJudge:
    """Sees a red car in every picture; a red picture shows it to be unsure."""

    name, kinds, tints = "nano", KINDS, TINTS
    thresholds = {"default": 0.3, "counting": 0.9}  # noqa: RUF012

    def detect(self, pictures):
        return [[Seen("car", "red", 0.2 if p.getpixel((0, 0))[0] else 0.95, (2, 2, 9, 9))] for p in pictures]


@dataclass
class FakePlan:
    steps: int = 3

    def to_json(self):
        return {"steps": self.steps}


@dataclass
class FakePipeline:
    """Draws black pictures and remembers its jobs."""

    folder: Path
    name: str = "tiny"
    reason: str | None = None
    default_size: tuple = (16, 16)
    default_system: str = "real"
    plan: FakePlan = field(default_factory=FakePlan)
    jobs: list = field(default_factory=list)

    def weights_for(self, plan):
        return fingerprint(self.folder)

    def recognize(self, weights, plan):
        return weights

    def generate(self, jobs, system):
        self.jobs += [(job.prompt, job.seed, job.number) for job in jobs]
        return [Image.new("RGB", self.default_size) for _ in jobs]


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """A fake model and a fake judge behind the names that the command line knows."""
    made = FakePipeline(tmp_path / "model")
    monkeypatch.setitem(JUDGES, "nano", f"{__name__}:FakeJudge")
    monkeypatch.setattr("lumina_cli.core.sampling.pipeline.load_pipeline", lambda name: made)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def lumina(capsys):
    """Run a command line: (exit code, rows of images or of the verb on stdout, stderr)."""

    def run(*words):
        code = app.run(["eval", *map(str, words)])
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()]
        return code, [row for row in rows if "overall" not in row], err

    return run


def folder(place, row, red=0):
    """Write one prompt and one picture in the official layout."""
    (place / "00000" / "samples").mkdir(parents=True)
    (place / "00000" / "metadata.jsonl").write_text(json.dumps(row))
    Image.new("RGB", (16, 16), (red, 0, 0)).save(place / "00000" / "samples" / "0000.png")
    return place


CAR = {"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a photo of a car"}


@pytest.mark.slow
def test_images_are_generated_judged_and_scored(pipeline, lumina):
    code, rows, err = lumina("geneval", "--model", "tiny", *SMALL, "--out", "run", "--seed", 5)
    assert (code, len(rows), len(pipeline.jobs)) == (0, 24, 24)
    assert "overall" in err
    assert "geneval, nano judge: rows.jsonl and summary.json in run" in err
    assert [json.loads(line) for line in Path("run/rows.jsonl").read_text().splitlines()] == rows
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["benchmark"], summary["pictures"], summary["prompts"]) == ("geneval", 24, 12)
    assert summary["settings"] | {"weights": ""} == {
        "judge": "nano",
        "thresholds": {"default": 0.3, "counting": 0.9},
        "seed": 5,
        "prompts": "nano",
        "per_task": 2,
        "split": "test",
        "model": "tiny",
        "weights": "",
        "size": [16, 16],
        "system": "real",
        "plan": {"steps": 3},
        "pictures": 2,
    }


def test_the_last_row_is_the_summary(pipeline, capsys):
    assert (
        app.run(["eval", "geneval", "--model", "tiny", "--per-task", "1", "--pictures", "1", "--out", "run"])
        == 0
    )
    *images, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert all("filename" in row for row in images)
    assert "filename" not in summary


def test_each_image_has_its_own_seed_and_noise(pipeline, lumina):
    lumina("geneval", "--model", "tiny", *SMALL, "--seed", 5, "--batch", 3)
    prompts = [row["prompt"] for row in nano_prompts(2, seed=5)]
    assert pipeline.jobs == [(prompts[i], 5, 1000 * i + k) for i in range(12) for k in range(2)]
    assert Path("scores/geneval-tiny/00011/samples/00001.png").is_file()


@pytest.mark.slow
def test_a_second_run_generates_only_batches_that_miss_an_image(pipeline, lumina):
    words = ("geneval", "--model", "tiny", "--per-task", 2, "--out", "run")
    lumina(*words, "--pictures", 1)
    lumina(*words, "--pictures", 1)
    assert len(pipeline.jobs) == 12
    code, rows, _ = lumina(*words, "--pictures", 2)  # each batch misses an image, and is generated as a whole
    assert (code, len(rows), len(pipeline.jobs)) == (0, 24, 36)
    pipeline.plan = FakePlan(4)
    lumina(*words, "--pictures", 1)
    assert len(pipeline.jobs) == 48


def test_languages_and_the_held_out_split(pipeline, lumina):
    code, rows, err = lumina("geneval", "--model", "tiny", *SMALL, "--langs", "en,de", "--split", "held-out")
    assert (code, len(rows)) == (0, 24)
    assert {row["tag"] for row in rows} == {"colors", "position", "color_attr"}
    assert all(json.loads(row["metadata"])["held_out"] for row in rows)
    assert "de" in err


def test_gates_that_pass_and_fail(pipeline, lumina, tmp_path):
    folder(tmp_path / "good", CAR)
    folder(tmp_path / "bad", CAR, red=255)
    assert lumina("geneval", "--images", "good", "--gate", "geneval>=0.8")[0] == 0
    code, rows, err = lumina("geneval", "--images", "bad", "--gate", "geneval>=0.8", "--out", "scores")
    assert (code, len(rows)) == (6, 1)
    assert err.endswith("lumina eval: geneval is 0.0000; the gate requires >= 0.8\n")
    assert Path("scores/summary.json").is_file()


def test_a_folder_is_scored_without_changing_it(pipeline, lumina, tmp_path):
    place = folder(tmp_path / "theirs", CAR)
    before = sorted(place.rglob("*"))
    code, (row,), _ = lumina("geneval", "--images", place)
    assert (code, row["correct"], row["filename"]) == (0, True, str(place / "00000" / "samples" / "0000.png"))
    assert sorted(place.rglob("*")) == before


def test_a_terminal_shows_a_table_instead_of_rows(pipeline, lumina, tmp_path, monkeypatch):
    folder(tmp_path / "good", CAR)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert lumina("geneval", "--images", "good")[1] == []
    assert len(lumina("geneval", "--images", "good", "--json")[1]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("geneval", 2, "pass exactly one of --model NAME, --images DIR or --ceiling"),
        (
            "geneval --model tiny --images x",
            2,
            "pass exactly one of --model NAME, --images DIR or --ceiling",
        ),
        (
            "geneval --ceiling --plan steps=3",
            2,
            "--plan and --preset need --model: --images and --ceiling do not sample",
        ),
        ("geneval --model tiny --plan stpes=3", 2, "a plan has no setting 'stpes'; did you mean 'steps'?"),
        ("genevel --model tiny", 2, "unknown benchmark 'genevel'; did you mean 'geneval'?"),
        ("geneval --model tiny --judge nana", 2, "unknown judge 'nana'; did you mean 'nano'?"),
        ("geneval --images nothing", 1, "nothing: no such folder"),
        ("geneval --model tiny --langs en,fr", 2, "unknown language 'fr'; choose from en, zh, ja, ru, de"),
        ("geneval --model tiny --split train", 2, "unknown split 'train'; choose from test, held-out"),
        (
            "geneval --model tiny --gate geneval",
            2,
            "--gate 'geneval' is not a gate; write one like 'geneval>=0.8'",
        ),
        (
            "geneval --model tiny --gate genevul>=1",
            2,
            "--gate 'genevul>=1': no score 'genevul'; did you mean 'geneval'?",
        ),
        (
            "geneval --model x/y --ceiling",
            2,
            "--ceiling renders nano scenes and does not apply to --model x/y",
        ),
        (
            "geneval --model tiny --prompts official",
            1,
            "'a photo of a bench': requests 'bench'; the nano judge detects only the nano kinds and tints",
        ),
        (
            "compare nothing nothing",
            1,
            "nothing/summary.json: missing; create it with `lumina eval geneval --out nothing`",
        ),
        (
            "compare a/summary.json b",
            1,
            "a/summary.json: missing; create it with `lumina eval geneval --out a`",
        ),
    ],
)
def test_errors_are_reported_in_one_line(pipeline, lumina, words, code, message):
    assert lumina(*words.split()) == (code, [], f"lumina eval: {message}\n")
    assert pipeline.jobs == []


def test_invalid_folders_are_reported_in_one_line(pipeline, lumina, tmp_path):
    place = folder(tmp_path / "theirs", CAR)
    picture = place / "00000" / "samples" / "0000.png"
    picture.write_bytes(b"no picture")
    code, _, err = lumina("geneval", "--images", "theirs")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("lumina eval: theirs/00000/samples/0000.png: truncated or not an image")
    (place / "00000" / "metadata.jsonl").unlink()
    _, _, err = lumina("geneval", "--images", "theirs")
    assert err == (
        "lumina eval: theirs/00000/metadata.jsonl: missing; GenEval's layout stores the metadata of the prompt in it\n"
    )


def test_the_folder_of_another_run_is_rejected(pipeline, lumina):
    lumina("geneval", "--model", "tiny", *SMALL, "--out", "run")
    code, _, err = lumina("geneval", "--model", "tiny", *SMALL, "--out", "run", "--seed", 9)
    assert (code, err.count("\n")) == (1, 1)
    assert "choose another --out" in err


@pytest.mark.slow
def test_prompts_are_rows(lumina):
    code, rows, _ = lumina("prompts", "geneval", "--per-task", 3, "--langs", "ru", "--seed", 2)
    assert (code, rows) == (0, nano_prompts(3, "ru", seed=2))
    assert len(lumina("prompts", "geneval", "--prompts", "official")[1]) == 553


def test_compare_two_runs(pipeline, lumina):
    for name in ("a", "b"):
        lumina("geneval", "--model", "tiny", *SMALL, "--out", name)
    code, rows, _ = lumina("compare", "a", "b/summary.json")
    assert code == 0
    assert rows[-1]["task"] == "overall"
    assert {row["difference"] for row in rows} == {0.0}


def test_the_ceiling_scores_ground_truth_images(pipeline, lumina):
    code, rows, _ = lumina("geneval", "--ceiling", "--model", "nano", "--per-task", 1, "--pictures", 1)
    assert (code, len(rows), pipeline.jobs) == (0, 6, [])
    assert Path("scores/geneval-true-scenes/summary.json").is_file()


def test_images_contain_their_generation_settings(pipeline, lumina):
    from lumina_cli.core.images.io import read_metadata

    lumina("geneval", "--model", "tiny", *SMALL, "--out", "run", "--seed", 5)
    origin = read_metadata("run/00001/samples/00001.png")
    assert {"prompt", "seed", "number", "model", "size", "system", "plan"} <= origin.keys()
    assert (origin["seed"], origin["number"]) == (5, 1001)


@pytest.mark.slow
def test_a_real_pipeline_generates_for_the_benchmark(monkeypatch, lumina, tiny_folder, tmp_path):
    from lumina_cli.core.images.io import read_metadata
    from lumina_cli.core.sampling.output.metadata import from_metadata

    monkeypatch.setitem(JUDGES, "nano", f"{__name__}:FakeJudge")
    words = ("--per-task", 1, "--pictures", 1, "--out")
    plans = {"own": ("solver=euler,steps=3",), "preset": ("steps=3", "--preset", "fast")}
    for (name, plan), solver in zip(plans.items(), ("euler", "dpm"), strict=True):
        code, rows, err = lumina("geneval", "--model", tiny_folder, *words, tmp_path / name, "--plan", *plan)
        assert (code, len(rows)) == (0, 6), err
        origin = from_metadata(read_metadata(rows[3]["filename"]))
        assert (origin.number, origin.plan.solver, origin.plan.steps) == (3000, solver, 3)


def test_two_evaluations_into_one_folder_at_once_are_refused(tmp_path, capsys):
    words = [
        "eval",
        "geneval",
        "--ceiling",
        "--per-task",
        "1",
        "--pictures",
        "1",
        "--out",
        str(tmp_path / "e"),
    ]
    (tmp_path / "e").mkdir()
    number = lock_folder(str(tmp_path / "e"))  # as another process holds it
    assert app.run(words) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/e is being written by another process; wait for it, or choose another folder" in err
    assert list((tmp_path / "e").iterdir()) == []
    os.close(number)
    assert app.run(words) == 0
    assert (tmp_path / "e" / "summary.json").exists()

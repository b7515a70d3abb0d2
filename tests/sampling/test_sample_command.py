"""`lumina sample`: exact stdout and stderr, exit codes, and files."""

import contextlib
import io
import json
import subprocess
import sys
from functools import partial

import pytest

from lumina_cli.cli import output
from lumina_cli.cli.app import run
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import read_metadata
from lumina_cli.core.models.locate import ModelChoice


@pytest.fixture
def sample(tiny_folder, tmp_path, capfd, monkeypatch):
    """Run `lumina sample` with the tiny model; returns (exit code, rows, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words, model=tiny_folder, plan="solver=euler", steps=2):
        fast = ["--plan", plan, *(["--steps", str(steps)] if steps else [])]
        code = run(["sample", *words, "--model", str(model), "--out", "out", *fast])
        done = capfd.readouterr()
        return code, [json.loads(line) for line in done.out.splitlines()], done.err

    return call


def test_prompts_from_arguments(sample, tmp_path, tiny_folder):
    code, rows, talk = sample("two cups", "a ball", "--seed", "3", "--count", "2", "--size", "64x48")
    assert (code, talk) == (0, "")
    assert [row["image"] for row in rows] == [
        "out/00000-two-cups-s3-0.png", "out/00000-two-cups-s3-1.png",
        "out/00001-a-ball-s3-0.png", "out/00001-a-ball-s3-1.png",
    ]  # fmt: skip
    assert rows[0] == {
        "prompt": "two cups", "image": "out/00000-two-cups-s3-0.png", "seed": 3, "number": 0,
        "model": str(tiny_folder), "size": "64x48", "kernel": "sdpa",
    }  # fmt: skip
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_prompts_from_a_file_keep_the_keys_of_rows(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "two cups", "tag": 1, "seed": 8}\n\n{"prompt": "a ball"}\n')
    code, rows, _ = sample("p.jsonl")
    assert code == 0
    assert [(row["prompt"], row.get("tag"), row["seed"]) for row in rows] == [
        ("two cups", 1, 8),
        ("a ball", None, 0),
    ]


def test_prompts_from_stdin(sample, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("two cups\na ball\n"))
    code, rows, _ = sample("-")
    assert code == 0
    assert [row["prompt"] for row in rows] == ["two cups", "a ball"]


def test_metadata_contains_the_plan(sample):
    code, rows, _ = sample(
        "two cups",
        "--guidance",
        "2",
        "--system",
        "base",
        plan="shift=3,guide_until=1,renorm=off,solver=euler",
    )
    assert code == 0
    metadata = read_metadata(rows[0]["image"])
    assert Plan.from_json(metadata["plan"]) == Plan("euler", 2, 3.0, 2.0, 1.0, None)
    assert (metadata["prompt"], metadata["system"]) == ("two cups", "base")


@pytest.mark.slow
def test_preset_decides_the_system_prompt_of_negatives(sample):
    for preset, prepended in (("official", True), ("diffusers", False)):
        code, rows, _ = sample("two cups", "--preset", preset, "--negative", "a ball")
        assert (code, rows[0]["negative"]) == (0, "a ball")
        metadata = read_metadata(rows[0]["image"])
        assert (metadata["negative"], metadata["negative_system"]) == ("a ball", prepended)
    code, rows, _ = sample("two cups", "--negative", "a ball", "--no-negative-system", plan="steps=1")
    assert (code, read_metadata(rows[0]["image"])["negative_system"]) == (0, False)
    code, rows, _ = sample("--from", rows[0]["image"], "--negative-system", steps=None)
    assert (code, read_metadata(rows[0]["image"])["negative_system"]) == (0, True)


def test_calls_set_the_number_of_steps(sample):
    code, rows, _ = sample("two cups", "--calls", "5", steps=None, plan="solver=midpoint")
    assert code == 0
    assert Plan.from_json(read_metadata(rows[0]["image"])["plan"]).steps == 2


def test_prompts_from_csv_with_sizes_seeds_and_negatives(sample, tmp_path):
    (tmp_path / "p.csv").write_text('prompt,seed,size,negative\ntwo cups,3,64x48,\n"a ball, red",,,cups\n')
    code, rows, _ = sample("p.csv")
    assert code == 0
    assert [(row["prompt"], row["seed"], row["size"], row.get("negative")) for row in rows] == [
        ("two cups", 3, "64x48", None),
        ("a ball, red", 0, "64x64", "cups"),
    ]


def test_snapped_ratio_is_reported_once(sample):
    code, rows, talk = sample("two cups", "a ball", "--size", "16:9@128")
    assert (code, {row["size"] for row in rows}) == (0, {"176x96"})
    assert talk == "size 16:9@128: 176x96, the nearest size of this model\n"


def test_several_seeds_equal_single_ones(sample, tmp_path):
    code, rows, talk = sample("two cups", "a ball", "--seed", "3,7-8", "--batch", "1")
    assert (code, talk) == (0, "")
    assert [(row["prompt"], row["seed"]) for row in rows[:4]] == [
        ("two cups", 3), ("two cups", 7), ("two cups", 8), ("a ball", 3),
    ]  # fmt: skip
    code, again, _ = sample("two cups", "--seed", "7")
    assert (again[0]["image"], again[0].get("resumed")) == (rows[1]["image"], True)
    (tmp_path / "p.csv").write_text("prompt,seed\na cup,1\na car,\n")
    code, rows, _ = sample("p.csv", "--seed", "5,6")
    assert [(row["prompt"], row["seed"]) for row in rows] == [("a cup", 1), ("a car", 5), ("a car", 6)]


def test_numbers_of_images_sort_and_old_names_are_found(sample, tmp_path):
    _, few, _ = sample("a ball", "--count", "2")
    assert [row["image"] for row in few] == ["out/00000-a-ball-s0-0.png", "out/00000-a-ball-s0-1.png"]
    _, rows, _ = sample("a ball", "--count", "12")
    names = [row["image"] for row in rows]
    assert names[:3] == [*(row["image"] for row in few), "out/00000-a-ball-s0-02.png"]
    assert names[2:] == sorted(names[2:])
    assert len(list((tmp_path / "out").iterdir())) == 12
    _, again, _ = sample("a ball", "--count", "3")
    assert [row["image"] for row in again] == names[:3]
    assert all(row["resumed"] for row in again)


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("p.csv", "prompt,sede\na ball,3\n", "p.csv: not used for generation: 'sede' (did you mean 'seed'?); rows "),
        ("p.csv", "prompt,steps,note\na ball,3,x\n", "p.csv: not used for generation: 'steps', 'note'; rows "),
        ("p.jsonl", '{"prompt": "a ball", "negative_prompt": "x", "id": 3}\n', "'negative_prompt' (did you mean 'negative'?)"),
        ("p.jsonl", '{"prompt": "a ball", "width": 64}\n', "p.jsonl: not used for generation: 'width'; rows "),
        ("p.jsonl", '{"prompt": "a ball", "id": 3, "image": "x.png", "width": 64}\n', ""),
    ],
)  # fmt: skip
def test_keys_that_have_no_effect_are_noted(name, text, note, sample, tmp_path):
    (tmp_path / name).write_text(text)
    code, _, talk = sample(name)
    assert code == 0
    assert note in talk
    assert talk.count("\n") == bool(note)


def test_captions_become_prompts_when_requested(sample, monkeypatch):
    rows = [
        {"key": "a1", "image": "x.png", "captions": {"en": {"short": "a ball", "detailed": "a car"}, "zh": {"tags": "球"}}},
        {"key": "b2", "captions": {"en": {"short": "two cups"}}},
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for which, prompts in (("short", ["a ball", "two cups"]), ("longest", ["a car", "two cups"])):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, found, _ = sample("-", "--captions", which)
        assert (code, [row["prompt"] for row in found]) == (0, prompts)
        assert found[1]["image"] == "out/b2-s0.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code, _, talk = sample("-", "--captions", "zh:tags")
    assert (code, talk) == (1, "lumina sample: row 2 has no caption zh:tags, only en:short\n")


def test_force_generates_existing_images_again(sample):
    first = sample("two cups", "a ball")
    again, forced = sample("two cups", "a ball"), sample("two cups", "a ball", "--force")
    assert [row.pop("resumed") for row in again[1]] == [True, True]
    assert first == again == forced


def test_splits_use_the_names_of_the_whole(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        "".join(f'{{"prompt": "{word}", "key": "same"}}\n' for word in ("cups", "balls", "cars"))
    )
    parts = [sample("p.jsonl", "--split", f"{part}/2")[1] for part in range(2)]
    assert [[row["prompt"] for row in part] for part in parts] == [["cups", "cars"], ["balls"]]
    _, whole, _ = sample("p.jsonl")
    assert [row["resumed"] for row in whole] == [True] * 3
    assert [row["image"] for row in whole] == [parts[n % 2][n // 2]["image"] for n in range(3)]


@pytest.mark.slow
def test_grids_and_replays_can_be_split(sample, tmp_path):
    prompts, axes = ("two cups", "a ball", "a car"), ("--grid", "guidance=1,2")
    parts = [sample(*prompts, *axes, "--split", f"{part}/2")[1] for part in range(2)]
    assert [[row["prompt"] for row in part] for part in parts] == [
        ["two cups"] * 2 + ["a car"] * 2, ["a ball"] * 2
    ]  # fmt: skip
    assert all(row["resumed"] for row in sample(*prompts, *axes)[1])
    again = [word for row in parts[0][:3] for word in ("--from", row["image"])]
    shares = [sample(*again, "--split", f"{part}/2", steps=None)[1] for part in range(2)]
    assert [row["from"] for part in shares for row in part] == [again[1], again[5], again[3]]


def test_torchrun_processes_split_the_rows(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, rows, _ = sample("two cups", "a ball", "a car")
    assert (code, [row["image"] for row in rows]) == (0, ["out/00001-a-ball-s0.png"])
    _, rows, _ = sample("two cups", "a ball", "--grid", "seed=1,2")
    assert [row["prompt"] for row in rows] == ["a ball"] * 2
    assert sample("--from", rows[0]["image"], steps=None)[:2] == (0, [])
    monkeypatch.setattr(sys, "stdin", io.StringIO("two cups\n"))
    assert sample("-") == (
        2, [], "lumina sample: 2 processes cannot share one stdin; name a file of rows\n"
    )  # fmt: skip


def test_truncated_prompt_is_noted(sample):
    code, rows, talk = sample("two cups " * 60)
    assert code == 0
    lost = rows[0]["truncated"]
    assert talk == f"row 1: the prompt is too long; its last {lost} tokens were truncated\n"


def test_auto_prints_its_choice_and_the_reason(sample, monkeypatch, tiny_folder):
    choice = ModelChoice("nano", tiny_folder, "model auto: nano, because it is here")
    monkeypatch.setattr("lumina_cli.core.sampling.runner.choose_model", lambda name: choice)
    code, rows, talk = sample("a", "--count", "2", model="auto")
    assert (code, talk) == (0, "model auto: nano, because it is here\n")
    assert (rows[0]["model"], rows[0]["model_reason"]) == ("nano", choice.reason)
    assert "model_reason" not in rows[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a", "--plan", "solver=eular"], 2, "unknown solver 'eular'; did you mean 'euler'?"),
        (["a", "--steps", "0"], 2, "steps must be an integer of at least 1, and at most 10000, not 0"),
        (["a", "--plan", "renorm=of"], 2, "renorm must be a positive number, row, or off, not 'of'"),
        (["a", "--calls", "0"], 2, "calls must be an integer of at least 1, not 0"),
        (["a", "--calls", "4", "--steps", "4", "--preset", "diffusers"], 2, "--steps and --calls are mutually exclusive"),
        (["a", "--preset", "offical"], 2, "unknown preset 'offical'; did you mean 'official'?"),
        (["a", "--split", "2/2"], 2, "split is '2/2', but must be I/N, such as 0/4, with I from 0 to N - 1"),
        (["a", "--size", "0:9"], 2, "size '0:9' is not WIDTHxHEIGHT, such as 1024x768, a ratio such as 16:9, or one of square, landscape, portrait, wide, tall"),
        (["p.csv"], 1, "p.csv line 3: number of fields differs from the header"),
        (["a", "--size", "100x64"], 2, "size 100x64: width 100 is not a multiple of 16 up to 8192; nearest: 96 or 112"),
        (["a", "--system", "reel"], 2, "unknown system prompt 'reel'; did you mean 'real'?"),
        (["a", "--model", "nanoo"], 2, "unknown model 'nanoo'; did you mean 'nano'?"),
        (["a", "--model", "."], 1, ". is not a model folder; it must contain transformer/, vae/, text_encoder/, tokenizer/"),
        ([""], 1, "the prompt is empty"),
        (["none.jsonl"], 1, "none.jsonl: no such file"),
        (["promts.txt"], 1, "promts.txt: no such file"),
        (["two cups", "sub/promts.csv"], 1, "sub/promts.csv: no such file"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(words, code, message, tiny_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("prompt,seed\na,1\nb,2,3\n")
    model = [] if "--model" in words else ["--model", str(tiny_folder)]
    assert run(["sample", *words, *model]) == code
    done = capfd.readouterr()
    assert (done.out, done.err) == ("", f"lumina sample: {message}\n")


def test_empty_prompt_exits_with_1_from_any_source(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n')
    for words, line in ((["p.jsonl"], "p.jsonl line 1: 'prompt' is empty"), ([" "], "the prompt is empty")):
        assert sample(*words) == (1, [], f"lumina sample: {line}\n")


@pytest.mark.parametrize("rows", [None, "", '{"text": "a ball"}\n'])
def test_invalid_first_row_loads_no_model_and_creates_no_folder(rows, sample, tmp_path):
    if rows is not None:
        (tmp_path / "p.jsonl").write_text(rows)
    code, _, talk = sample("p.jsonl", model="nobody/nothing")
    assert code == 1
    assert "p.jsonl" in talk
    assert not (tmp_path / "out").exists()


def test_error_without_rows_names_each_source(sample, tmp_path, monkeypatch):
    (tmp_path / "a-b.jsonl").write_text("")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert sample("a-b.jsonl", "-") == (
        1, [], "lumina sample: no prompts in a-b.jsonl, stdin\n"
    )  # fmt: skip


def test_row_without_a_prompt_names_its_line(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "two cups"}\n{"text": "a ball"}\n')
    code, _, talk = sample("p.jsonl")
    assert (code, talk) == (1, "lumina sample: p.jsonl line 2 has no 'prompt', only text\n")


def test_run_without_a_checkpoint_names_the_remedy(sample, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "recipe.yaml").write_text("model: nano\n")
    code, _, talk = sample("a", model="first")
    assert (code, talk) == (
        1,
        "lumina sample: first has no checkpoint yet; train one with `lumina train ... out=first`\n",
    )


class Bar:
    """A progress bar that records its updates."""

    def __init__(self):
        self.moves = []

    def add_task(self, label, total):
        self.moves.append((label, total))
        return 0

    def update(self, task, completed, total, description=None, whole=None):
        self.moves.append((completed, whole, total, description))

    def remove_task(self, task):
        self.moves.append("end")


def test_progress_bar_counts_whole_images_and_names_the_step(sample, monkeypatch):
    sample("a ball", "--count", "2")
    bar = Bar()
    monkeypatch.setattr("lumina_cli.cli.output._open_bar", lambda: contextlib.nullcontext(bar))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    sample("a ball", "--count", "3", "--force")
    steps = [(1.5, 0, 3, "images, step 1 of 2"), (3.0, 0, 3, "images, step 2 of 2")]
    saved = [(3, count, 3, "images") for count in (1, 2, 3)]
    assert bar.moves == [("images", 3), (0, 0, 3, None), *steps, *saved, "end"]
    bar.moves.clear()
    sample("a ball", "two cups", "--count", "3")
    assert bar.moves == [("images", 6), (0, 0, 3, None), *steps, *saved, "end"]
    bar.moves.clear()
    sample("a ball", "two cups", "a car", "--split", "0/2", "--grid", "seed=1,2")
    assert bar.moves[0] == ("images", 4)
    assert bar.moves[-2:] == [(4, 4, 4, "images"), "end"]


def test_the_bar_on_screen_shows_whole_images_and_the_step():
    with output._open_bar() as bar:
        task = bar.add_task("images", total=4)
        counter = output.ProgressCounter(4)
        counter.move = partial(bar.update, task)
        counter(1, ahead=2.5, label="images, step 9 of 10")
        (shown,) = bar.tasks
        cells = [str(column(shown)) for column in bar.columns if hasattr(column, "render")]
    assert (shown.completed, cells[0], cells[2]) == (3.5, "images, step 9 of 10", "1/4")


ENDED = """
import os, signal, sys
import PIL.Image
from lumina_cli.cli import app

save, saved = PIL.Image.Image.save, []

def slow(self, aside, **settings):
    save(self, aside, **settings)
    saved.append(aside)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

PIL.Image.Image.save = slow
app.main()
"""


@pytest.mark.slow
def test_sigterm_keeps_finished_images_and_no_partial_file(tmp_path, tiny_folder):
    words = ["sample", "two cups", "a ball", "a car", "--model", str(tiny_folder), "--out", "out"]
    command = [sys.executable, "-c", ENDED, *words, "--batch", "1", "--calls", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (
        143,
        "lumina sample: terminated; rerun the same command to resume\n",
    )
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == ["out/00000-two-cups-s0.png"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000-two-cups-s0.png"]

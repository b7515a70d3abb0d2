"""`lumina sample`: exact words on stdout and stderr, exit codes, and what is left on the disk."""

import io
import json
import sys

import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.flow import Plan
from lumina_cli.core.formats.images import read_metadata
from lumina_cli.core.sampling.models import Choice

FAST = ["--solver", "euler", "--steps", "2"]


@pytest.fixture
def sample(tiny_folder, tmp_path, capfd, monkeypatch):
    """Run the verb on the tiny model; returns (exit code, rows, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words, model=tiny_folder):
        code = run(["sample", *words, "--model", str(model), "--out", "out", *FAST])
        done = capfd.readouterr()
        return code, [json.loads(line) for line in done.out.splitlines()], done.err

    return call


def test_prompts_are_words(sample, tmp_path, tiny_folder):
    code, rows, talk = sample("two cups", "a ball", "--seed", "3", "--count", "2", "--size", "64x48")
    assert (code, talk) == (0, "")
    assert [row["image"] for row in rows] == [
        "out/00000-two-cups-s3-0.png", "out/00000-two-cups-s3-1.png",
        "out/00001-a-ball-s3-0.png", "out/00001-a-ball-s3-1.png",
    ]  # fmt: skip
    assert rows[0] == {
        "prompt": "two cups", "image": "out/00000-two-cups-s3-0.png", "seed": 3, "number": 0,
        "model": str(tiny_folder), "size": "64x48",
    }  # fmt: skip
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_prompts_come_from_a_file_and_rows_keep_their_keys(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "two cups", "tag": 1, "seed": 8}\n\n{"prompt": "a ball"}\n')
    code, rows, _ = sample("p.jsonl")
    assert code == 0
    assert [(row["prompt"], row.get("tag"), row["seed"]) for row in rows] == [
        ("two cups", 1, 8),
        ("a ball", None, 0),
    ]


def test_prompts_come_from_stdin(sample, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("two cups\na ball\n"))
    code, rows, _ = sample("-")
    assert code == 0
    assert [row["prompt"] for row in rows] == ["two cups", "a ball"]


def test_the_plan_is_in_the_picture(sample):
    code, rows, _ = sample(
        "two cups", "--shift", "3", "--guidance", "2", "--guide-until", "1", "--renorm", "off", "--system", "base"
    )  # fmt: skip
    assert code == 0
    metadata = read_metadata(rows[0]["image"])
    assert Plan.from_json(metadata["plan"]) == Plan("euler", 2, 3.0, 2.0, 1.0, None)
    assert (metadata["prompt"], metadata["system"]) == ("two cups", "base")


def test_a_cut_prompt_is_noted(sample):
    code, rows, talk = sample("two cups " * 60)
    assert code == 0
    lost = rows[0]["truncated"]
    assert talk == f"row 1: the prompt is too long; its last {lost} tokens were not read\n"


def test_auto_says_which_and_why(sample, monkeypatch, tiny_folder):
    choice = Choice("nano", tiny_folder, "model auto: nano, because it is here")
    monkeypatch.setattr("lumina_cli.core.sampling.rows.choose_model", lambda name: choice)
    code, rows, talk = sample("a", model="auto")
    assert (code, talk) == (0, "model auto: nano, because it is here\n")
    assert (rows[0]["model"], rows[0]["model_reason"]) == ("nano", choice.reason)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a", "--solver", "eular"], 2, "unknown solver 'eular'; did you mean 'euler'?"),
        (["a", "--steps", "0"], 2, "steps is 0, but must be a whole number from 1"),
        (["a", "--renorm", "of"], 2, "--renorm is 'of', but must be a number above 0, or off"),
        (["a", "--size", "100x64"], 2, "size 100x64: width 100 is not a multiple of 16 up to 8192; nearest: 96 or 112"),
        (["a", "--system", "reel"], 2, "unknown system prompt 'reel'; did you mean 'real'?"),
        (["a", "--model", "nanoo"], 2, "unknown model 'nanoo'; did you mean 'nano'?"),
        (["a", "--model", "."], 1, ". is not a model folder; it would hold transformer/, vae/, text_encoder/, tokenizer/"),
        ([""], 1, "the prompt is empty"),
        (["none.jsonl"], 1, "none.jsonl: no such file of rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(words, code, message, tiny_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in words else ["--model", str(tiny_folder)]
    assert run(["sample", *words, *model]) == code
    done = capfd.readouterr()
    assert (done.out, done.err) == ("", f"lumina sample: {message}\n")


def test_an_empty_prompt_ends_with_1_wherever_it_stands(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n')
    for words, line in ((["p.jsonl"], "p.jsonl line 1: 'prompt' is empty"), ([" "], "the prompt is empty")):
        assert sample(*words) == (1, [], f"lumina sample: {line}\n")


@pytest.mark.parametrize("rows", [None, "", '{"text": "a ball"}\n'])
def test_a_bad_first_row_costs_no_model_and_leaves_no_folder(rows, sample, tmp_path):
    if rows is not None:
        (tmp_path / "p.jsonl").write_text(rows)
    code, _, talk = sample("p.jsonl", model="nobody/nothing")
    assert code == 1
    assert "p.jsonl" in talk
    assert not (tmp_path / "out").exists()


def test_without_a_row_the_line_names_every_source(sample, tmp_path, monkeypatch):
    (tmp_path / "a-b.jsonl").write_text("")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert sample("a-b.jsonl", "-") == (
        1, [], "lumina sample: nothing to do: no prompt in a-b.jsonl stdin\n"
    )  # fmt: skip


def test_a_row_without_a_prompt_names_its_line(sample, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "two cups"}\n{"text": "a ball"}\n')
    code, _, talk = sample("p.jsonl")
    assert (code, talk) == (1, "lumina sample: p.jsonl line 2 has no 'prompt', only text\n")


def test_a_run_without_a_checkpoint_says_how_to_write_one(sample, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "recipe.yaml").write_text("model: nano\n")
    code, _, talk = sample("a", model="first")
    assert (code, talk) == (
        1,
        "lumina sample: first has no checkpoint yet; `lumina train ... out=first` writes one\n",
    )

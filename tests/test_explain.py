"""`lumina sample --explain`: what it says is what is drawn, without weights, in any width."""

import json
import shutil

import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.sampling import explain_rows, load_pipeline
from lumina_cli.core.sampling.jobs import Job, Wish
from lumina_cli.core.sampling.latents import draw_latents

SYSTEM = (
    "You are an assistant designed to generate high-quality images based on user prompts. <Prompt Start> "
)


@pytest.fixture(scope="module")
def hollow(tiny_folder, tmp_path_factory):
    """The tiny model without a weight: its files are empty."""
    folder = tmp_path_factory.mktemp("hollow") / "m"
    shutil.copytree(tiny_folder, folder)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"")
    return folder


def explain(folder, *rows, **wishes):
    told = list(
        explain_rows(
            [row if isinstance(row, dict) else {"prompt": row} for row in rows], str(folder), **wishes
        )
    )
    about = {kind: [row for row in told if row["about"] == kind] for kind in ("plan", "call", "text")}
    assert sum(map(len, about.values())) == len(told)
    return about["plan"][0], about["call"], about["text"]


def test_the_calls_are_those_that_drawing_makes(hollow, tiny_folder):
    plan, calls, _ = explain(hollow, "two cups", preset="official", plan={"steps": 6})
    pipe, made = load_pipeline(tiny_folder), []
    setup = Wish(preset="official", plan={"steps": 6}).resolve(pipe)

    def network(latents, t, *_):
        made.append((round(t[0].item(), 5), len(latents)))
        return latents

    text, mask = pipe.features.of([setup.prompt(Job("two cups"))])
    noise = pipe.vae.encode(text.new_zeros(1, 3, 64, 64))
    draw_latents(network, noise, text, mask, *pipe.features.of([""]), setup.plan)
    assert [(round(call["t"], 5), call["rows"]) for call in calls] == made
    assert plan["calls"] == len(made) == 10
    assert plan["network_rows"] == sum(rows for _, rows in made)
    assert plan["guided_calls"] == sum(call["guided"] for call in calls) == 7
    assert plan["times"] == setup.plan.times()
    assert Plan.from_json(plan["settings"]) == setup.plan


def test_each_setting_says_where_it_comes_from(hollow):
    plan, *_ = explain(hollow, "a", preset="diffusers", plan={"calls": 5, "guidance": 2.0})
    assert plan["from"]["steps"] == plan["from"]["guidance"] == "given"
    assert (plan["from"]["renorm"], plan["from"]["shift"], plan["from"]["guide"]) == (
        "preset",
        "model",
        "default",
    )
    assert (plan["size"], plan["image_tokens"]) == ("64x64", 16)


def test_the_texts_are_those_that_the_encoder_gets(hollow, tiny_folder):
    rows = [{"prompt": "two cups", "negative": "a ball"}, {"prompt": "a car", "size": "64x48"}]
    for preset, before in (("official", SYSTEM), ("diffusers", "")):
        *_, texts = explain(hollow, *rows, system="base", preset=preset)
        assert [(text["row"], text["branch"], text["text"], text["size"]) for text in texts] == [
            (1, "prompt", SYSTEM + "two cups", "64x64"),
            (1, "negative", before + "a ball", "64x64"),
            (2, "prompt", SYSTEM + "a car", "64x48"),
            (2, "null", "", "64x48"),
        ]
    encode = load_pipeline(tiny_folder).text.encode
    assert [text["tokens"] for text in texts] == [encode([text["text"]])[0].shape[1] for text in texts]


def test_what_is_not_read_is_told(hollow):
    *_, texts = explain(hollow, "two cups " * 60, system="empty")
    assert (texts[0]["tokens"], texts[0]["dropped"]) == (541, 285)
    assert len(texts[0]["unread"].replace(" ", "")) in range(220, 240)
    assert "two cups two cups" in texts[0]["unread"]
    assert texts[1] == {
        "about": "text", "row": 1, "size": "64x64", "branch": "null", "text": "", "tokens": 1, "dropped": 0, "unread": "",
    }  # fmt: skip


def test_wrong_wishes_are_told_as_drawing_would(hollow):
    with pytest.raises(UsageError, match="unknown preset 'none'"):
        explain(hollow, "a", preset="none")


def test_rows_on_a_pipe_and_no_picture(hollow, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "two cups", "--model", str(hollow), "--explain", "--calls", "4"]) == 0
    done = capfd.readouterr()
    assert [json.loads(line)["about"] for line in done.out.splitlines()] == [
        "plan",
        *["call"] * 4,
        "text",
        "text",
    ]
    assert (done.err, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize("columns", [50, 80])
def test_a_page_fits_the_terminal_and_leaves_nothing_out(hollow, columns, monkeypatch, capfd):
    monkeypatch.setattr("lumina_cli.cli.output.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ["two cups", "--negative", "a ball", "--model", str(hollow), "--explain", "--preset", "official"]
    assert run(["sample", *words]) == 0
    done = capfd.readouterr()
    assert done.out == ""
    assert max(map(len, done.err.splitlines())) <= columns
    page = " ".join(done.err.split())
    assert "two cups" in page
    assert "34 network calls a picture, 23 of them guided, 57 rows" in page
    assert "row 1, negative, " in page
    assert "<Prompt Start> a ball" in page
    assert "momentum" not in page

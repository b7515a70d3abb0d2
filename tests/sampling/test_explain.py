"""`lumina sample --explain`: agrees with generation, reads no weights, fits any terminal."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.models.hub import LUMINA_IMAGE_2, SYSTEMS
from lumina_cli.core.sampling.editing.img2img import EditHook, read_edit
from lumina_cli.core.sampling.explain import explain_rows
from lumina_cli.core.sampling.latents import draw_latents
from lumina_cli.core.sampling.model_options import ModelOptions
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job, SamplingRequest

SYSTEM = (
    "You are an assistant designed to generate high-quality images based on user prompts. <Prompt Start> "
)


@pytest.fixture(scope="module")
def hollow(tiny_folder, tmp_path_factory):
    """The tiny model with weight files that contain no tensors."""
    folder = tmp_path_factory.mktemp("hollow") / "m"
    shutil.copytree(tiny_folder, folder)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def explain(folder, *rows, **settings):
    told = list(
        explain_rows(
            [row if isinstance(row, dict) else {"prompt": row} for row in rows], str(folder), **settings
        )
    )
    about = {kind: [row for row in told if row["about"] == kind] for kind in ("plan", "call", "text")}
    assert sum(map(len, about.values())) == len(told)
    return about["plan"][0], about["call"], about["text"]


def test_explained_calls_match_generation(hollow, tiny_folder):
    plan, calls, _ = explain(hollow, "two cups", preset="official", plan={"steps": 6})
    pipe, made = load_pipeline(tiny_folder), []
    resolved = SamplingRequest(preset="official", plan={"steps": 6}).resolve(pipe)

    def network(latents, t, *_):
        made.append((round(t[0].item(), 5), len(latents)))
        return latents

    text, mask = pipe.text_cache.encode([resolved.prompt(Job("two cups"))])
    noise = pipe.vae.encode(text.new_zeros(1, 3, 64, 64))
    draw_latents(network, noise, text, mask, *pipe.text_cache.encode([""]), resolved.plan)
    assert [(round(call["t"], 5), call["rows"]) for call in calls] == made
    assert plan["calls"] == len(made) == 10
    assert plan["network_rows"] == sum(rows for _, rows in made)
    assert plan["guided_calls"] == sum(call["guided"] for call in calls) == 7
    assert plan["times"] == resolved.plan.times()
    assert Plan.from_json(plan["settings"]) == resolved.plan


def test_explained_settings_name_their_source(hollow):
    plan, *_ = explain(hollow, "a", preset="diffusers", plan={"calls": 5, "guidance": 2.0})
    assert plan["from"]["steps"] == plan["from"]["guidance"] == "given"
    assert (plan["from"]["renorm"], plan["from"]["shift"], plan["from"]["guide"]) == (
        "preset",
        "model",
        "default",
    )
    assert (plan["size"], plan["image_tokens"]) == ("64x64", 16)


def test_explained_texts_match_the_encoder(hollow, tiny_folder):
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


def test_truncated_text_is_explained(hollow):
    *_, texts = explain(hollow, "two cups " * 60, system="empty")
    assert (texts[0]["tokens"], texts[0]["dropped"]) == (541, 285)
    assert len(texts[0]["unread"].replace(" ", "")) in range(220, 240)
    assert "two cups two cups" in texts[0]["unread"]
    assert texts[1] == {
        "about": "text", "row": 1, "size": "64x64", "branch": "null", "text": "", "tokens": 1, "dropped": 0, "unread": "",
    }  # fmt: skip


@pytest.fixture
def wide(tmp_path):
    """An image of 96x48 and a mask of its left half."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)).save(
        tmp_path / "wide.png"
    )
    mask = Image.new("L", (96, 48))
    mask.paste(255, (0, 0, 48, 48))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "wide.png", tmp_path / "mask.png"


@pytest.mark.slow
@pytest.mark.parametrize(("masked", "strength"), [(False, None), (True, None), (True, 0.3), (False, 0.0)])
def test_explained_edit_matches_generation(hollow, tiny_folder, wide, monkeypatch, masked, strength):
    init, mask = wide[0], wide[1] if masked else None
    options = ModelOptions(init=init, mask=mask, strength=strength)
    told, calls, texts = explain(hollow, "two cups", plan={"steps": 6}, options=options)
    edit, made = read_edit(init, mask, strength), []
    pipe = load_pipeline(tiny_folder).with_hooks(EditHook(edit))
    network = pipe.transformer.forward
    watched = lambda x, t, *rest, **more: made.append((t[0].item(), len(x))) or network(x, t, *rest, **more)  # noqa: E731
    monkeypatch.setattr(pipe.transformer, "forward", watched)
    (picture,) = pipe.generate_batch([Job("two cups")], SamplingRequest(plan={"steps": 6}).resolve(pipe))
    assert [call["t"] for call in calls] == pytest.approx([t for t, _ in made])
    assert told["calls"] == len(made)
    assert told["size"] == texts[0]["size"] == "{}x{}".format(*picture.size) == "96x48"
    assert told["image_tokens"] == 96 * 48 // 16**2
    assert told["edit"] == pipe.edit_settings
    assert told["times"][0] == pytest.approx(1 - edit.strength)


def test_requested_size_overrides_that_of_the_image(hollow, wide):
    rows = [{"prompt": "two cups", "size": "48x64"}, {"prompt": "a ball"}]
    told, _, texts = explain(hollow, *rows, size="64x48", options=ModelOptions(init=wide[0]))
    assert told["size"] == "64x48"
    assert [text["size"] for text in texts[::2]] == ["48x64", "64x48"]


def test_explain_rejects_invalid_settings(hollow):
    with pytest.raises(UsageError, match="unknown preset 'none'"):
        explain(hollow, "a", preset="none")


def test_explain_writes_rows_to_a_pipe_and_no_image(hollow, tmp_path, monkeypatch, capfd):
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


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--init", "gone.png"], 1, "gone.png: no such image"),
        (
            ["--init", "wide.png", "--strength", "2"],
            2,
            "strength must be between 0 (unchanged) and 1 (pure noise), not 2.0",
        ),
        (["--init", "wide.png", "--mask", "small.png"], 2, "they must have the same size"),
        (["--strength", "0.5"], 2, "--mask and --strength need --init"),
        (["--quantize", "int9"], 2, "unknown quantization 'int9'"),
        (["--lora", "gone.safetensors"], 1, "gone.safetensors"),
        (["--lora", "small.png"], 1, "small.png"),
        (["--attention", "horse"], 2, "'horse' is not in the prompt 'two cups'"),
        (["--memory", "much"], 2, "much"),
    ],
)
def test_explain_rejects_what_generation_rejects(hollow, wide, words, code, line, monkeypatch, capfd):
    monkeypatch.chdir(wide[0].parent)
    Image.new("L", (16, 16), "white").save("small.png")
    assert run(["sample", "two cups", "--model", str(hollow), "--explain", *words]) == code
    assert line in capfd.readouterr().err


def test_explain_page_describes_an_edit(hollow, wide, monkeypatch, capfd):
    monkeypatch.chdir(wide[0].parent)
    monkeypatch.setattr("lumina_cli.cli.output.is_terminal", lambda: True)
    assert run(["sample", "two cups", "--model", str(hollow), "--explain", "--init", "wide.png"]) == 0
    page = " ".join(capfd.readouterr().err.split())
    assert "; starts from wide.png at strength 0.6" in page
    assert "96x48 (18 image tokens)" in page


@pytest.mark.parametrize("columns", [50, 80])
def test_explain_page_fits_the_terminal(hollow, columns, monkeypatch, capfd):
    monkeypatch.setattr("lumina_cli.cli.output.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ["two cups", "--negative", "a ball", "--model", str(hollow), "--explain", "--preset", "official"]
    assert run(["sample", *words]) == 0
    done = capfd.readouterr()
    assert done.out == ""
    assert max(map(len, done.err.splitlines())) <= columns
    page = " ".join(done.err.split())
    assert "two cups" in page
    assert "34 network calls per image (23 guided), 57 batch entries" in page
    assert "row 1, negative, " in page
    assert "<Prompt Start> a ball" in page
    assert "momentum" not in page


def test_explain_needs_no_weights_of_the_large_model(monkeypatch, capfd):
    monkeypatch.setattr("lumina_cli.core.models.hub.find_cached", lambda repo: None, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["sample", "two cups", "--model", "lumina-image-2", "--explain"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    plan, text = rows[0], rows[-2]
    assert (plan["model"], plan["size"], plan["settings"]["shift"]) == ("lumina-image-2", "1024x1024", 6.0)
    assert (text["text"].endswith("<Prompt Start> two cups"), text["tokens"]) == (True, None)


@pytest.mark.parametrize("name", [*SYSTEMS, LUMINA_IMAGE_2])
def test_explain_needs_no_weights_of_models_with_the_same_network(name, monkeypatch, capfd):
    monkeypatch.setattr("lumina_cli.core.models.hub.find_cached", lambda repo: None)
    monkeypatch.setattr("lumina_cli.core.models.locate.find_cached", lambda repo: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["sample", "1girl", "--model", name, "--explain"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    system = SYSTEMS.get(name, "real")
    assert (rows[0]["model"], rows[0]["system"], rows[0]["size"]) == (name, system, "1024x1024")
    assert rows[-2]["text"] == full_prompt("1girl", system)


@pytest.mark.parametrize("name", ["some-one/other-model", "neta-art/Neta-Lumina-2"])
def test_explain_does_not_recommend_the_model_that_was_named(name, monkeypatch, capfd):
    monkeypatch.setattr("lumina_cli.core.models.hub.find_cached", lambda repo: None)
    assert run(["sample", "1girl", "--model", name, "--explain"]) == 1
    assert capfd.readouterr().err == (
        f"lumina sample: {name!r} is not on this machine, and --explain does not download it: "
        "generate an image with it first, or name a model folder\n"
    )

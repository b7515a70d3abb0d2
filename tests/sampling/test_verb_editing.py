"""`lumina sample` with replays, grids, editing, attention maps, LoRAs and quantization."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lumina_cli.cli.app import run
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.images.io import open_image, read_metadata

FEW = ("--plan", "solver=euler", "--steps", "2")


@pytest.fixture
def sample(tiny_folder, tmp_path, capfd, monkeypatch):
    """Run `lumina sample` with the tiny model; returns (exit code, rows, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = run(["sample", *words, "--model", str(tiny_folder)])
        done = capfd.readouterr()
        return code, [json.loads(line) for line in done.out.splitlines()], done.err

    return call


@pytest.mark.slow
def test_from_regenerates_an_image(sample):
    first = sample("two cups", "--seed", "9", "--out", "out", *FEW)[1][0]["image"]
    code, rows, _ = sample("--from", first, "--out", "again")
    assert (code, rows[0]["apart"], rows[0]["seed"]) == (0, 0, 9)
    code, rows, _ = sample("--from", first, "--out", "again", "--seed", "10")
    assert (code, rows[0]["seed"], "apart" in rows[0]) == (0, 10, False)  # a different image was requested
    assert Image.open(rows[0]["image"]).tobytes() != Image.open(first).tobytes()


def test_grid_with_gallery(sample, tmp_path):
    code, rows, talk = sample(
        "two cups",
        "--grid",
        "steps=1,2 x guidance=1,4",
        "--gallery",
        "--plan",
        "solver=euler",
        "--out",
        "out",
    )
    assert code == 0
    assert [row["cell"] for row in rows] == [{"steps": s, "guidance": g} for s in (1, 2) for g in (1, 4)]
    assert open_image(rows[-1]["sheet"]).width > 2 * 64
    assert talk.splitlines()[-1] == "gallery: out/gallery.html"
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(row["image"].removeprefix("out/") in page for row in rows)


def test_init_and_mask_edit_an_image(sample, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    mask = Image.new("L", (64, 64), "black")
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    code, rows, _ = sample("two cups", "--init", "red.png", "--mask", "mask.png", "--out", "out", *FEW)
    assert code == 0
    picture = open_image(rows[0]["image"])
    assert picture.getpixel((63, 5)) == (255, 0, 0)  # unchanged outside the mask
    assert picture.getpixel((5, 5)) != (255, 0, 0)
    assert read_metadata(rows[0]["image"])["edit"]["init"] == "red.png"


def test_attention_saves_a_map(sample):
    code, rows, _ = sample("two cups", "--attention", "cups", "--out", "out", *FEW)
    assert code == 0
    assert open_image(rows[0]["attention"]["cups"]).size == (64, 64)


@pytest.mark.slow
def test_loras_and_int8_change_the_fingerprint(sample, tmp_path, tiny_folder):
    width = json.loads((tiny_folder / "transformer" / "config.json").read_text())["hidden_size"]
    random = torch.Generator().manual_seed(0)
    name = "transformer.layers.0.attn.to_q"
    pair = {f"{name}.lora_A.weight": (2, width), f"{name}.lora_B.weight": (width, 2)}
    save_file({key: torch.randn(shape, generator=random) for key, shape in pair.items()}, "a.safetensors")
    found = {}
    for words in ((), ("--lora", "a.safetensors:0.5"), ("--lora", "a.safetensors"), ("--quantize", "int8")):
        code, rows, _ = sample("two cups", *words, "--out", "out", *FEW)
        assert code == 0
        found[rows[0]["image"]] = read_metadata(rows[0]["image"])["weights"]
    assert len(found) == len(set(found.values())) == 4  # each has its own file and fingerprint
    code, rows, _ = sample("two cups", "--lora", "a.safetensors", "--out", "out", *FEW)
    assert rows[0]["resumed"] is True


@pytest.mark.slow
def test_memory_budget_keeps_the_image(sample):
    plain = sample("two cups", "--out", "out", *FEW)[1][0]["image"]
    code, rows, talk = sample("two cups", "--memory", "2G", "--out", "tight", *FEW)
    assert code == 0
    assert talk.startswith("memory 2")
    assert open_image(rows[0]["image"]).tobytes() == open_image(plain).tobytes()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["x", "--mask", "m.png"], 2, "--mask and --strength need --init, the image to start from"),
        (["x", "--init", "m.png"], 1, "m.png"),
        (["x", "--grid", "gidance=1,2"], 2, "guidance"),
        (
            ["--from", "m.png", "--grid", "steps=1,2"],
            2,
            "--from regenerates single images and cannot be combined with --grid",
        ),
        (["x", "--guidance", "-3"], 2, "guidance must be at least 0 (1 disables it), not -3"),
        (["x", "--plan", "guidance=-0.5"], 2, "guidance must be at least 0 (1 disables it), not -0.5"),
        (["x", "--grid", "guidance=-1,2", *FEW], 2, "guidance must be at least 0 (1 disables it), not -1"),
        (["x", "--seed", "1,b"], 2, "seed is '1,b', but must be an integer, or a list such as 1,2,7-9"),
        (["x", "--seed", "1-1000000000000"], 2, "has more than 100000 seeds"),
        (["x", "--captions", "shrt"], 2, "--captions is 'shrt', but must be one of detailed, medium"),
        (["--from", "m.png"], 1, "m.png"),
        (["--from", "plain.png"], 1, "does not contain generation settings"),
        (["x", "--attention", "cup", *FEW], 2, "cup"),
        (["x", "--lora", "m.safetensors", *FEW], 1, "m.safetensors"),
        (["x", "--quantize", "int9"], 2, "unknown quantization 'int9'"),
        (["x", "--attention", "x", "--quantize", "int8"], 2, "omit --quantize"),
        (["x", "--memory", "much"], 2, "much"),
        (["x", "--memory", "1M"], 2, "too small"),
        (["x", "--memory", "2G", "--quantize", "int8"], 2, "omit --quantize"),
        (["x", "--cache", "tee:0.1"], 2, "tee"),
    ],
)
def test_incompatible_options_are_one_line_errors(sample, tmp_path, words, code, line):
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    done, rows, talk = sample(*words)
    assert (done, rows) == (code, [])
    assert talk.count("\n") == 1
    assert line in talk


def test_from_takes_new_prompts_seeds_and_a_preset(sample):
    _, (first,), _ = sample("two cups", "--seed", "3", "--size", "64x48", *FEW)
    code, rows, talk = sample(
        "a ball", "a car", "--from", first["image"], "--seed", "5,7", "--preset", "fast"
    )
    assert (code, talk) == (0, "")
    assert [(row["prompt"], row["seed"], row["size"]) for row in rows] == [
        ("a ball", 5, "64x48"), ("a ball", 7, "64x48"), ("a car", 5, "64x48"), ("a car", 7, "64x48"),
    ]  # fmt: skip
    plan = read_metadata(rows[0]["image"])["plan"]
    assert plan == find_preset("fast").resolve(plan["shift"], {}).to_json()
    assert [Path(row["image"]).stem for row in rows[:2]] == [
        "00000-two-cups-s3-a-ball-s5",
        "00000-two-cups-s3-a-ball-s7",
    ]


def test_prompts_of_from_equal_prompts_with_the_same_settings(sample):
    _, (first, other), _ = sample("two cups", "a ball", "--seed", "3", "--batch", "1", *FEW)
    _, (row,), _ = sample("a ball", "--from", first["image"])
    assert open_image(row["image"]).tobytes() == open_image(other["image"]).tobytes()


def test_gallery_of_a_folder_that_exists(sample, tmp_path, monkeypatch):
    sample("two cups", *FEW)
    with open("/dev/null") as null:
        monkeypatch.setattr("sys.stdin", null)
        assert sample("--gallery") == (0, [], "gallery: pictures/gallery.html\n")
        assert sample("--gallery", "--out", "none")[0] == 1


def test_gallery_of_another_program_is_kept(sample, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "gallery.html").write_text("<h1>mine</h1>")
    code, rows, talk = sample("two cups", "--gallery", *FEW)
    assert (code, rows, len(list((tmp_path / "pictures").iterdir()))) == (1, [], 1)
    assert "pictures/gallery.html was not written by lumina and is not replaced; move it away first" in talk
    assert (tmp_path / "pictures" / "gallery.html").read_text() == "<h1>mine</h1>"

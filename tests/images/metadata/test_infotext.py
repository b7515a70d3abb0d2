"""Infotexts of A1111, Forge and SD.Next: one unreadable setting costs that setting, not the text."""

import pytest

from lumina_cli.core.images.metadata.infotext import read_infotext

START = "a red car, (shiny:1.2)\nNegative prompt: blurry\n"
LINE = "Steps: 20, Sampler: Euler, CFG scale: 4.5, Seed: 7, Size: 512x768, "


@pytest.mark.parametrize(
    ("rest", "name", "value"),
    [
        ('Hashes: {"model": "ab12", "lora:x": "cd34"}', "Hashes", '{"model": "ab12", "lora:x": "cd34"}'),
        (
            'Civitai resources: [{"type":"checkpoint","modelVersionId":1},{"weight":0.8}], '
            "Civitai metadata: {}, Clip skip: 2",
            "Clip skip",
            "2",
        ),
        (
            "Model: v1-5\nTemplate: a {red|blue} car\nNegative Template: blurry",
            "Template",
            "a {red|blue} car",
        ),
        ("Model: v1-5\nTemplate: a {red|\nblue} car", "Template", "a {red|\nblue} car"),
        ('Lora hashes: "a: b, c: d", Version: f2.0.1v1.10.1', "Lora hashes", "a: b, c: d"),
        ('Hashes: {"model": "ab12", Version: v1.9', "Version", "v1.9"),
        ('ADetailer prompt: "a \\"face\\", red, Version: v1.9', "Version", None),
        ("Module 1: ae, Module 2: clip_l, Distilled CFG Scale: 3.5", "Module 2", "clip_l"),
        ("App: SD.Next, Pipeline: Lumina2Pipeline, Operations: txt2img; hires", "App", "SD.Next"),
        ("Model: one, two, Version: v1", "Model", "one, two"),
        ("broken ]{ here, : , Version: v1", "Version", "v1"),
    ],
)
def test_settings_after_any_value_are_read(rest, name, value):
    found = read_infotext(START + LINE + rest)
    assert (found["prompt"], found["negative"]) == ("a red car, (shiny:1.2)", "blurry")
    assert (found["seed"], found["size"]) == (7, [512, 768])
    assert found["plan"] == {"steps": 20, "solver": "euler", "guidance": 4.5}
    assert found["parameters"].get(name) == value or value is None


@pytest.mark.parametrize(
    ("line", "unused", "plan"),
    [
        ("Steps: 20, Sampler: DPM++ SDE Karras, Seed: 7", ["solver"], {"steps": 20}),
        ("Steps: 9999999999, Sampler: Euler, Seed: 7", ["steps"], {"solver": "euler"}),
        (
            "Steps: 20.0, Sampler: UniPC, CFG scale: nan, Seed: 7",
            ["guidance"],
            {"steps": 20, "solver": "unipc"},
        ),
        (f"Steps: 20, Seed: {'7' * 5000}", ["seed"], {"steps": 20}),
        ("Steps: 20, Seed: 7, Size: 10x10x10, Shift: -3", ["size", "shift"], {"steps": 20}),
    ],
)
def test_unusable_settings_are_named(line, unused, plan):
    found = read_infotext(f"a cup\n{line}")
    assert (found["prompt"], found["unused"], found["plan"]) == ("a cup", unused, plan)


def test_long_hostile_lines_are_read_quickly():
    assert read_infotext("a cup\n" + "Steps: 2, Seed: 3, " + 'x: "{[,' * 20_000)["seed"] == 3
    assert read_infotext("Steps: \n" * 50_000) == {}

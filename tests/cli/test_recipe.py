"""Recipes: how values are converted, which ones are rejected, and the line that an error names."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from lumina_cli.core import recipe
from lumina_cli.core.errors import UsageError
from lumina_cli.core.recipe import find_recipe, load_recipe, packaged_recipes


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Strict):
    steps: int
    lr: Annotated[float, Field(gt=0)] = 1e-3
    compile: bool = False
    captions: dict[str, float] = {}
    shift: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)


class Optimizer(Strict):
    name: Literal["adamw", "muon"] = "adamw"


class Recipe(Strict):
    model: str = "nano"
    seed: int = 0
    out: Path | None = None
    optimizer: Optimizer = Optimizer()
    stages: dict[str, Stage] = {}


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "nano.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, Recipe, list(overrides))

    return load


def test_values_are_not_converted_as_in_yaml_1_1(load):
    found = load(
        "model: no\nseed: 010\nstages:\n  on: {steps: 1_000, lr: 2e-4, compile: yes, shift: ~, betas: [0.8, .9]}\n"
    )
    assert (found.model, found.seed) == ("no", 10)
    assert found.stages["on"] == Stage(steps=1000, lr=2e-4, compile=True, betas=(0.8, 0.9))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_recipe_is_all_defaults(load, text):
    assert load(text) == Recipe()


def test_no_recipe_at_all():
    assert load_recipe(None, Recipe, ["seed=3"]) == Recipe(seed=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages:\n  low:\n    stpes: 3\n",
            "nano.yaml line 3: stages.low: no setting 'stpes'; did you mean 'steps'?",
        ),
        ("modle: x\n", "nano.yaml line 1: no setting 'modle'; did you mean 'model'?"),
        (
            "\n\nqqq: x\n",
            "nano.yaml line 3: no setting 'qqq'; choose from model, seed, out, optimizer, stages",
        ),
        (
            "stages:\n  low:\n    steps: many\n",
            "nano.yaml line 3: stages.low.steps: 'many' is not an integer",
        ),
        ("stages: {low: {steps: 2.5}}\n", "nano.yaml line 1: stages.low.steps: '2.5' is not an integer"),
        ("stages: {low: {steps: 1, lr: x}}\n", "nano.yaml line 1: stages.low.lr: 'x' is not a number"),
        (
            "stages: {low: {steps: 1, lr: .nan}}\n",
            "nano.yaml line 1: stages.low.lr: '.nan' is not a finite number",
        ),
        (
            "stages: {low: {steps: 1, compile: 7}}\n",
            "nano.yaml line 1: stages.low.compile: '7' is not true or false",
        ),
        (
            "stages: {low: {steps: 1, lr: -1}}\n",
            "nano.yaml line 1: stages.low.lr: '-1': input should be greater than 0",
        ),
        ("stages:\n  low: {lr: 1}\n", "nano.yaml line 2: stages.low: missing setting 'steps'"),
        ("stages:\n  low: 7\n", "nano.yaml line 2: stages.low: '7' is not a group of settings"),
        ("stages: [1]\n", "nano.yaml line 1: stages: ['1'] is not a group of settings"),
        ("model:\n", "nano.yaml line 1: model: nothing is not text"),
        (
            "optimizer: {name: muno}\n",
            "nano.yaml line 1: optimizer.name: 'muno' is not one of 'adamw', 'muon'; did you mean 'muon'?",
        ),
        (
            "seed: 1\nmodel: a\nseed: 2\n",
            "nano.yaml line 3: seed is set twice; first at nano.yaml line 1",
        ),
        ("- a\n", "nano.yaml line 1: a recipe must be a YAML mapping, with lines such as `name: value`"),
        ("model: [a\nseed: 1\n", "nano.yaml line 2: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "model: !!python/name:os.system\n",
            "nano.yaml line 1: model: !!python/name:os.system is not allowed in a recipe",
        ),
        ("? [a]\n: 1\n", "nano.yaml line 1: setting names must be strings"),
        (
            "a: &a [x]\nb: &b [*a, *a]\nmodel: &m [*m]\n",
            "nano.yaml line 3: nested or repeated too deeply for a recipe",
        ),
    ],
)
def test_errors_name_the_line(load, text, message):
    with pytest.raises(UsageError) as caught:
        load(text)
    assert str(caught.value) == message


def test_the_first_of_two_mistakes_is_reported(load):
    with pytest.raises(UsageError, match=r"line 2: stages\.low\.steps"):
        load("stages:\n  low: {steps: x}\nseed: y\n")


def test_overrides(load):
    text = "seed: 1\nstages:\n  low: {steps: 5}\n"
    found = load(
        text,
        "stages.low.lr=2e-4",
        "stages.hq.steps=7",
        "seed=020",
        "stages.low.captions={short: 0.5}",
        "out=a=b",
    )
    assert found.stages["low"] == Stage(steps=5, lr=2e-4, captions={"short": 0.5})
    assert found.stages["hq"].steps == 7
    assert (found.seed, found.out) == (20, Path("a=b"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stages.low.stpes=3", "on the command line: stages.low: no setting 'stpes'; did you mean 'steps'?"),
        ("stages.low.steps=x", "on the command line: stages.low.steps: 'x' is not an integer"),
        ("stages.hq.lr=1", "on the command line: stages.hq: missing setting 'steps'"),
        ("seed.x=1", "on the command line: seed.x: seed is one value, not a group of settings"),
        ("seed", "on the command line: 'seed' is not a setting; write name=value or group.name=value"),
        (".x=1", "on the command line: '.x=1' is not a setting; write name=value or group.name=value"),
        (
            "stages.low={steps: 1, stpes: 2}",
            "on the command line: stages.low: no setting 'stpes'; did you mean 'steps'?",
        ),
        ("stages.low={steps", "on the command line: stages.low: expected ',' or '}', but got '<stream end>'"),
        ("seed=inf", "on the command line: seed: 'inf' is not a finite number"),
    ],
)
def test_overrides_are_validated(load, word, message):
    with pytest.raises(UsageError) as caught:
        load("seed: 1\nstages: {low: {steps: 5}}\n", word)
    assert str(caught.value) == message


def test_packaged_recipes_are_found_by_name(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    (folder / "sample").mkdir(parents=True)
    for name in ("nano", "lora", "sample/fast"):
        (folder / f"{name}.yaml").write_text("seed: 5\n")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(recipe, "PACKAGE", tmp_path / "lumina_cli")
    assert list(packaged_recipes()) == ["lora", "nano", "sample/fast"]
    assert load_recipe("nano", Recipe).seed == 5
    for name, message in {
        "nanno": "unknown recipe 'nanno'; did you mean 'nano'?",
        "zzzzz": "unknown recipe 'zzzzz'; choose from lora, nano, or give a .yaml file",
        f"{folder}/none.yaml": f"{folder}/none.yaml: no such file",
    }.items():
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            find_recipe(name)


def test_a_recipe_must_be_utf_8(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(UsageError, match=r"x\.yaml is not UTF-8 text"):
        load_recipe(tmp_path / "x.yaml", Recipe)


def test_a_recipes_folder_next_to_an_installed_package_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "theirs.yaml").write_text("model: theirs\n")
    monkeypatch.setattr(recipe, "PACKAGE", tmp_path / "lumina_cli")
    assert packaged_recipes() == {}
    (tmp_path / "lumina_cli" / "recipes").mkdir(parents=True)
    (tmp_path / "lumina_cli" / "recipes" / "ours.yaml").write_text("model: ours\n")
    assert set(packaged_recipes()) == {"ours"}
    (tmp_path / "pyproject.toml").touch()
    assert set(packaged_recipes()) == {"ours"}

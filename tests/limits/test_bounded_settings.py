"""Recipes, plans, configs and sources of absurd depth or size end in one line, before any work."""

import json
import shutil
import time

import pytest

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.limits import InvalidJSON, parse_json, prune_json
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.locate import ModelChoice
from lumina_cli.core.recipe import load_recipe
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.sources.source import read_source

DEEP = ["[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 300 + "]" * 300]


@pytest.fixture(autouse=True)
def at_once():
    """Fail if a test takes more than a few seconds, whatever it asserts."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "just too deep"])
def test_deep_json_is_refused(text):
    with pytest.raises(InvalidJSON, match=r"nested too deeply \(more than 256 levels\)"):
        parse_json(text)


def test_json_up_to_the_limits_is_read():
    assert parse_json("[" * 256 + "]" * 256)
    assert parse_json("9" * 300) == int("9" * 300)
    assert parse_json(json.dumps("[" * 5000)) == "[" * 5000
    for text in ("9" * 301, "-" + "9" * 301, "9" * 5000, '[{"a": ' + "9" * 301 + "}]"):
        with pytest.raises(InvalidJSON, match="an integer has more than 300 digits"):
            parse_json(text)


def test_json_is_pruned_below_the_limit():
    inner = "[" * 300 + '"]]"' + "]" * 300
    pruned = json.loads(prune_json(f'{{"x": {inner}, "y": [1, {{"z": "}}"}}]}}'))
    assert pruned["y"] == [1, {"z": "}"}]
    value, depth = pruned["x"], 0
    while value:
        value, depth = value[0], depth + 1
    assert (value, depth) == (None, 255)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + DEEP[0],
        "a: " + DEEP[1],
        "\n".join(" " * n + "a:" for n in range(1000)),
        "- " * 5000 + "a",
        "a: [" + "1," * 20_000 + "]",
        "a: &x [b]\n" + "\n".join(f"k{n}: [*x, *x]" for n in range(9000)),
    ],
    ids=["lists", "objects", "blocks", "dashes", "long", "aliases"],
)
def test_recipes_of_absurd_depth_or_length_are_refused(tmp_path, text):
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"deep\.yaml line \d+: nested or repeated too deeply for a recipe"):
        load_recipe(tmp_path / "deep.yaml", object)


def test_a_recipe_of_megabytes_is_refused(tmp_path):
    (tmp_path / "large.yaml").write_text("# " + "a" * (2 << 20))
    with pytest.raises(UsageError, match=r"large\.yaml is larger than 1 MiB, too large for a recipe"):
        load_recipe(tmp_path / "large.yaml", object)


def test_deep_settings_on_the_command_line_are_refused(lumina, tmp_path):
    code, _, err = lumina(f"train nano out={tmp_path}/run 'data={'[' * 5000}'")
    assert code == 2
    assert "on the command line: nested or repeated too deeply" in err


@pytest.mark.parametrize("steps", [10**9, 10_001, 10**30, 10**299])
def test_plans_have_a_largest_number_of_steps(steps, lumina, tmp_path):
    message = "steps must be an integer of at least 1, and at most 10000, not 1000"
    (tmp_path / "plan.json").write_text(json.dumps({"steps": steps}))
    for settings in (f"steps={steps}", str(tmp_path / "plan.json")):
        with pytest.raises(UsageError, match=message[:60]):
            read_settings(settings)
    code, _, err = lumina(f"sample ball --model nano --steps {steps} --out {tmp_path}/out")
    assert (code, message[:60] in err) == (2, True)
    assert Plan(steps=10_000).steps == 10_000


@pytest.mark.parametrize("text", [*DEEP, '{"shift": ' + "9" * 400 + "}", '{"shift": ' + "9" * 5000 + "}"])
def test_plans_beyond_the_limits_are_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match=r"--plan .* or a JSON file \(") as caught:
        read_settings(str(tmp_path / "plan.json"))
    assert len(str(caught.value)) < 600
    with pytest.raises(UsageError):
        Plan.from_json(text)


def test_an_infinite_file_is_not_a_plan():
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        read_settings("/dev/zero")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nano:100000000000000000000", "the number of scenes must be at most 1,000,000,000"),
        ("nano:" + "9" * 5000, "is not a whole number"),
        ("nano:5?size=-1", "size must be from 8 to 2048 pixels"),
        ("nano:5?size=0", "size must be from 8 to 2048 pixels"),
        ("nano:5?size=1000000", "size must be from 8 to 2048 pixels"),
        ("nano:-5", "the number of scenes must be at least 1"),
    ],
)
def test_sources_of_scenes_are_bounded(source, message, lumina, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_source(source)
    code, _, err = lumina(f"shard '{source}' {tmp_path}/data")
    assert (code, message in err, err.count("\n")) == (2, True, 1)


def test_a_source_of_a_billion_scenes_starts_at_once():
    assert next(read_source("nano:1000000000?size=8"))["key"] == "nano-0-000000"


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the bundled model."""
    return shutil.copytree(ASSETS / "nano", tmp_path / "nano")


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("transformer", {"axes_lens": [10**9] * 3}, "axes_lens must be three integers .* at most 65536"),
        (
            "transformer",
            {"axes_lens": [300, 512, 10**7]},
            "axes_lens must be three integers .* at most 65536",
        ),
        (
            "transformer",
            {"num_layers": 10**7},
            r"num_layers is 10000000, more than its weights can have \(\d+\)",
        ),
        ("transformer", {"num_layers": 10**299}, "num_layers is 1000.*, more than its weights can have"),
        ("transformer", {"num_refiner_layers": 10**5}, "num_refiner_layers is 100000, more than its weights"),
        ("transformer", {"multiple_of": 10**12}, "multiple_of must be at most 262144"),
        ("transformer", {"cap_feat_dim": 10**9}, "cap_feat_dim is 1000000000, more than its weights"),
        (
            "text_encoder",
            {"num_hidden_layers": 10**7},
            "num_hidden_layers is 10000000, more than its weights",
        ),
        ("text_encoder", {"vocab_size": 1e12}, "vocab_size is 1000000000000, more than its weights"),
        ("text_encoder", {"hidden_size": float("inf")}, "hidden_size is inf, more than its weights"),
        ("vae", {"layers_per_block": 10**8}, "layers_per_block is 100000000, more than its weights"),
        (
            "vae",
            {"block_out_channels": [10**9] * 4},
            "block_out_channels is 1000000000, more than its weights",
        ),
        ("vae", {"block_out_channels": [8] * 10**5}, "the length of block_out_channels is 100000, more than"),
    ],
)
def test_configs_are_compared_with_the_weights_first(folder, component, changes, message):
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(LuminaError, match=message) as caught:
        ModelFolder(ModelChoice("nano", folder))
    assert f"{folder}/{component}" in str(caught.value)


@pytest.mark.parametrize("text", [*DEEP, "7", "[]", "{", '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("place", ["transformer/config.json", "vae/config.json", "plan.json"])
def test_settings_of_a_model_folder_beyond_the_limits_are_refused(folder, place, text):
    (folder / place).write_text(text)
    with pytest.raises(LuminaError) as caught:
        ModelFolder(ModelChoice("nano", folder))
    assert str(folder / place) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text", ["7", '"a"', "null", DEEP[0], '{"weight_map": 7}', '{"weight_map": {"a": 7}}']
)
def test_an_index_that_is_not_an_object_is_refused(folder, text, lumina):
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(text)
    code, _, err = lumina(f"sample ball --model {folder} --explain")
    assert (code, str(index) in err, err.count("\n")) == (1, True, 1)

"""Damaged files of a run: a resume uses what is whole, rebuilds what it can, and names the rest with a remedy."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lumina_cli.core.weights.checksums import SUMS, write_checksums
from lumina_cli.core.weights.run_folder import FILES

WEIGHTS = "model/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """A run of four steps with checkpoints of steps 2 and 4, made once and copied by the tests."""
    from lumina_cli.cli.app import run

    folder = tmp_path_factory.mktemp("finished")
    random = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(8):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": {"en": {"short": "red"}}}) + "\n")
    values = {
        "model": str(tiny_folder), "frozen": str(tiny_folder), "data": str(folder / "rows.jsonl"),
        "precision": "fp32", "log_every": 1, "checkpoint_every": 2, "validation": {"samples": 0},
        "stages": {"low": {"size": 64, "steps": 4, "batch": 2, "lr": 1e-3, "system": "empty"}},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert run(["train", str(folder / "tiny.yaml"), f"out={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "number": lambda path: path.write_text("7"),
    "random": lambda path: path.write_bytes(b"\xff\x00" * 3000),
    "lists": lambda path: path.write_text("[" * 100_000),
}


def weights_of(run):
    return load_file(run / WEIGHTS)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def without_checksums(run):
    """Make a run as earlier releases left it."""
    for folder in [*(run / "checkpoints").iterdir(), run / "model"]:
        (folder / SUMS).unlink(missing_ok=True)
        state = folder / "state.json"
        if state.exists():
            fields = {k: v for k, v in json.loads(state.read_text()).items() if k != "recipe"}
            state.write_text(json.dumps(fields))
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    del settings["stage"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_resume_falls_back_to_the_newest_whole_checkpoint(name, damage, copied, finished, lumina):
    DAMAGES[damage](copied / "checkpoints" / "0000004" / name)
    code, rows, err = lumina(f"train out={copied} --resume")
    assert code == 0
    line = err.splitlines()[0]
    assert line.startswith(f"damaged in {copied / 'checkpoints'}: 0000004 ({name} ")
    assert "; resuming from 0000002; " in line
    assert rows[0] == {"phase": "resume", "step": 2, "damaged": [4]}
    assert [row["step"] for row in rows if "loss" in row] == [3, 4]
    assert same(weights_of(copied), weights_of(finished))
    assert losses(copied) == losses(finished)
    names = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert names == ["0000002", "0000004", "0000004.damaged"]
    assert lumina(f"train out={copied} --resume")[2].startswith("nothing left to train")


def test_damaged_checksums_count_as_damage(copied, lumina):
    (copied / "checkpoints" / "0000004" / SUMS).write_text("no checksums\n")
    assert "0000004 (state.json is not listed in SHA256SUMS)" in lumina(f"train out={copied} --resume")[2]


def test_a_dry_run_changes_no_checkpoint(copied, lumina):
    flip(copied / "checkpoints" / "0000004" / "ema.safetensors")
    code, rows, err = lumina(f"train out={copied} --resume --dry-run")
    assert (code, [row["stage"] for row in rows]) == (0, ["low"])
    assert "ema.safetensors does not match its checksum in SHA256SUMS" in err
    assert (copied / "checkpoints" / "0000004").is_dir()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("count", [1, 2])
def test_without_a_whole_checkpoint_the_remedy_is_named(name, count, copied, lumina, tmp_path):
    if count == 1:
        shutil.rmtree(copied / "checkpoints" / "0000002")
    for folder in (copied / "checkpoints").iterdir():
        flip(folder / name)
    code, rows, err = lumina(f"train out={copied} --resume")
    assert (code, rows, err.count("\n")) == (1, [], 1)
    assert f"no whole checkpoint; damaged: {copied}/checkpoints/0000004 ({name} does not match" in err
    command = f"train {copied}/recipe.yaml out={copied}-2 model={copied}/model"
    assert f"train on from the exported model with `lumina {command}`" in err
    assert sorted(path.name for path in (copied / "checkpoints").iterdir())[-1] == "0000004"
    assert lumina(f"{command} stages.low.steps=1")[0] == 0
    flip(copied / WEIGHTS)
    assert (
        f"start again with `lumina train {copied}/recipe.yaml out={copied}-2`"
        in (lumina(f"train out={copied} --resume")[2])
    )


def test_a_run_of_an_earlier_release_resumes(copied, finished, lumina):
    without_checksums(copied)
    shutil.rmtree(copied / "checkpoints" / "0000004")
    code, rows, err = lumina(f"train out={copied} --resume")
    assert (code, err) == (0, "")
    assert [row["step"] for row in rows if "loss" in row] == [3, 4]
    assert same(weights_of(copied), weights_of(finished))


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "number", "random"])
@pytest.mark.parametrize("name", FILES)
def test_damage_without_checksums_is_found_by_structure(name, damage, copied, lumina):
    without_checksums(copied)
    DAMAGES[damage](copied / "checkpoints" / "0000004" / name)
    code, _, err = lumina(f"train out={copied} --resume --dry-run")
    assert code == 0
    assert "damaged in " in err
    assert "resuming from 0000002" in err


def test_a_flipped_bit_in_an_optimizer_without_checksums_is_found(copied, lumina):
    without_checksums(copied)
    flip(copied / "checkpoints" / "0000004" / "optimizer.pt")
    assert "0000004 (optimizer.pt is damaged at " in lumina(f"train out={copied} --resume --dry-run")[2]


@pytest.mark.parametrize(
    ("damage", "removed"),
    [
        (lambda text: text.replace('"loss"', '"loss', 1), 1),
        (lambda text: "7\n[]\nnull\n" + text, 3),
        (lambda text: text.replace("{", "\udcff", 2), 2),
        (lambda text: text + '{"step": 4, "lo', 0),  # as a kill leaves it
        (lambda text: "[" * 100_000 + "\n" + text, 1),
        (lambda text: '{"step": "4"}\n' + text, 1),
    ],
)
def test_unreadable_metrics_are_removed(damage, removed, copied, lumina):
    path = copied / "metrics.jsonl"
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    code, _, err = lumina(f"train out={copied} --resume stages.low.steps=5")
    assert code == 0
    note = f"{path}: removed {removed} unreadable line{'s' if removed > 1 else ''}\n"
    assert (note in err) == bool(removed)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[-1]["step"] == 5
    assert all(isinstance(row["step"], int) for row in rows)


def test_missing_metrics_are_written_again(copied, lumina):
    (copied / "metrics.jsonl").unlink()
    assert lumina(f"train out={copied} --resume stages.low.steps=5")[0] == 0
    assert [step for step, _ in losses(copied)] == [5]


@pytest.mark.parametrize("damage", [*DAMAGES, "typo"])
@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_recipe_is_restored_from_a_checkpoint(named, damage, copied, finished, lumina):
    path = copied / "recipe.yaml"
    if damage == "flipped":
        path.write_bytes(path.read_bytes().replace(b"stages:", b"sta\xe7es:"))
    elif damage == "typo":
        path.write_text(path.read_text().replace("precision", "precisoin"))
    else:
        DAMAGES[damage](path)
    before = path.read_bytes() if path.exists() else None
    recipe = finished.parent / "tiny.yaml" if named else ""
    code, _, err = lumina(f"train {recipe} out={copied} --resume")
    assert code == 0
    assert err.startswith(f"{path} is damaged (")
    assert ": restored from the newest checkpoint" in err.splitlines()[0]
    assert path.read_text() == (finished / "recipe.yaml").read_text()
    if before is not None:
        assert path.with_name("recipe.yaml.damaged").read_bytes() == before
        assert "; the damaged file is now recipe.yaml.damaged\n" in err


def test_a_damaged_recipe_without_a_copy_names_the_remedy(copied, finished, lumina):
    without_checksums(copied)
    (copied / "recipe.yaml").write_text("7")
    code, rows, err = lumina(f"train out={copied} --resume")
    assert (code, rows, err.count("\n")) == (1, [], 1)
    assert "a recipe must be a YAML mapping" in err
    assert "no checkpoint has a copy; repair it, or delete it and name the recipe of the run, as in " in err
    (copied / "recipe.yaml").unlink()
    assert lumina(f"train {finished.parent / 'tiny.yaml'} out={copied} --resume")[0] == 0


CACHE = ["latents.bin", "rows.jsonl", "progress.json", "tokens-*.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CACHE)
def test_a_damaged_cache_is_built_again(name, damage, checksums, copied, finished, lumina):
    path = next((copied / "cache").glob(f"*/{name}"))
    if not checksums:
        if name == "latents.bin" and damage in ("flipped", "lists"):
            return  # as long as recorded: cannot be found
        without_cache_checksums(path.parent)
    content = path.read_bytes()
    DAMAGES[damage](path)
    shutil.rmtree(copied / "checkpoints" / "0000004")
    code, _, err = lumina(f"train out={copied} --resume")
    assert code == 0
    rebuilt = "token cache" if path.suffix == ".npz" else f"latent cache {path.parent} is damaged ("
    expected = damage != "missing" or name in ("latents.bin", "rows.jsonl")  # a lost progress.json: not built
    assert (rebuilt in err) == expected
    assert same(weights_of(copied), weights_of(finished))
    if path.suffix != ".npz" and checksums:
        assert path.read_bytes() == content


def without_cache_checksums(folder):
    progress = json.loads((folder / "progress.json").read_text())
    del progress["crc"]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lines = [json.dumps({k: v for k, v in row.items() if k != "crc"}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    progress["row_bytes"] = (folder / "rows.jsonl").stat().st_size
    (folder / "progress.json").write_text(json.dumps(progress))


def test_damage_in_a_large_cache_is_found_when_it_is_read(copied, lumina, monkeypatch):
    monkeypatch.setattr("lumina_cli.core.dataset.cache_check.MAX_CHECKED", 10)
    path = next((copied / "cache").glob("*/latents.bin"))
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    shutil.rmtree(copied / "checkpoints" / "0000004")
    code, _, err = lumina(f"train out={copied} --resume")
    assert code == 1
    assert f"{path} is damaged at image " in err
    assert "resume the run with --resume, which builds this cache again" in err
    assert lumina(f"train out={copied} --resume")[0] == 0


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_model_is_exported_again(damage, copied, finished, lumina, tmp_path):
    DAMAGES[damage](copied / WEIGHTS)
    code, _, err = lumina(f"sample red --model {copied} --steps 1 --out {tmp_path / 'images'}")
    assert code == 1
    assert f"`lumina train out={copied} --resume` exports it again" in err
    code, _, err = lumina(f"train {finished}/recipe.yaml model={copied} out={tmp_path / 'more'} --dry-run")
    assert (code, f"{copied / 'model'} is damaged" in err) == (1, True)
    assert lumina(f"train out={copied} --resume stages.low.steps=5")[0] == 0
    shutil.rmtree(copied)
    shutil.copytree(finished, copied)
    DAMAGES[damage](copied / WEIGHTS)
    code, _, err = lumina(f"train out={copied} --resume")
    assert (code, "exporting the model again, from step 4" in err) == (0, True)
    assert same(weights_of(copied), weights_of(finished))


@pytest.mark.parametrize(
    "name",
    [
        "vae/config.json", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ],
)  # fmt: skip
def test_damaged_settings_of_a_model_are_exported_again(name, copied, finished, lumina, tmp_path):
    path = copied / "model" / name
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a", b"e", 1))
    code, _, err = lumina(f"sample red --model {copied} --steps 1 --out {tmp_path / 'images'}")
    assert (code, f"{name} does not match its checksum in SHA256SUMS" in err) == (1, True)
    assert f"`lumina train out={copied} --resume` exports it again" in err
    code, _, err = lumina(f"train {finished}/recipe.yaml frozen={copied} out={tmp_path / 'more'} --dry-run")
    assert (code, f"{name} does not match" in err) == (1, True)
    code, _, err = lumina(f"train out={copied} --resume")
    assert (code, "exporting the model again, from step 4" in err) == (0, True)
    assert path.read_bytes() == whole


def test_damaged_settings_of_a_run_without_checksums_are_read_as_before(copied, lumina, tmp_path):
    (copied / "model" / SUMS).unlink()
    path = copied / "model" / "model_index.json"
    path.write_bytes(path.read_bytes().replace(b"0.33", b"0.34"))
    assert lumina(f"sample red --model {copied} --steps 1 --out {tmp_path / 'images'}")[0] == 0


def test_a_model_with_edited_settings_is_not_damaged(copied, lumina, tmp_path):
    (copied / "model" / "plan.json").write_text('{"steps": 1}')
    assert lumina(f"sample red --model {copied} --out {tmp_path / 'images'}")[0] == 0
    flip(copied / WEIGHTS)
    (copied / "model" / SUMS).unlink()  # as the message advises after a change on purpose
    assert "damaged" not in lumina(f"sample red --model {copied} --steps 1 --out {tmp_path / 'images'}")[2]


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a b").write_text("x")
    write_checksums(tmp_path)
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert (tmp_path / SUMS).read_text() == f"{digest}  inner/a b\n"

"""Overlays after an update of their shards: unchanged images keep their values, the others have none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.core.dataset.precomputed import PrecomputedLatents
from lumina_cli.core.models.locate import find_model
from lumina_cli.core.shards.overlays.coverage import describe_missing
from lumina_cli.core.shards.reader import read_shards

pytestmark = pytest.mark.usefixtures("no_power_cut")


def add_photo(folder: Path, name: str, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(noise).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(f"a photo of {name}")


@pytest.fixture
def data(tmp_path, lumina, monkeypatch) -> str:
    """Six scored photos in three shards; then the image of `a` changes, and `g` is new."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abcdef"):
        add_photo(tmp_path / "photos", name, seed)
    assert lumina("shard photos data --per-shard 2")[0] == 0
    assert lumina("shard score data --scores entropy,sharpness")[0] == 0
    return "data"


def update(lumina, *names: str) -> str:
    for name in names:
        add_photo(Path("photos"), name, 100 + ord(name))
    code, _, err = lumina("shard photos data --per-shard 2")
    assert code == 0
    return err


NOTE = (
    "2 of 7 samples of data have no values of scores@0001 in shards with new or changed images; "
    "compute them with `lumina shard score data --scores entropy,sharpness`\n"
)


def test_samples_with_the_same_image_keep_their_values(data, lumina):
    before = {row["key"]: row["scores"] for row in read_shards(data)}
    assert "`lumina shard score data --scores entropy,sharpness`" in update(lumina, "a", "g")
    code, rows, err = lumina("shard cat data")
    assert (code, err.count(NOTE)) == (0, 1)
    assert {row["key"]: row.get("scores") for row in rows} == before | {"a": None, "g": None}
    assert lumina("shard cat data?overlay=scores")[1] == rows
    assert "no values" not in lumina("shard cat data?overlay=")[2]
    code, (summary,), err = lumina("shard stats data")
    assert (code, summary["scores"]["entropy"]["samples"], err.count(NOTE)) == (0, 5, 1)
    code, (summary,), err = lumina("shard preview data --by entropy")
    assert (code, summary["samples"], err.count(NOTE)) == (0, 5, 1)


def test_a_missing_value_is_one_of_a_sample_without_a_score(data, lumina):
    update(lumina, "a", "g")
    code, rows, err = lumina('shard select data best --where "entropy > 0" --best 3 --by sharpness')
    assert (code, err.count(NOTE)) == (0, 1)
    assert [(row["left"], row.get("without_value")) for row in rows] == [(7, None), (5, 2), (3, 0)]
    assert "no values" not in lumina("shard cat best")[2]
    code, rows, err = lumina("shard select data all")
    assert "2 of 7 samples of all have no values of scores@0001" in lumina("shard cat all")[2]


def test_the_named_command_computes_only_the_missing_values(data, lumina):
    update(lumina, "a", "g")
    assert [row["ok"] for row in lumina("shard verify data")[1]][-1] is False
    rows = lumina("shard score data --scores entropy,sharpness")[1]
    assert (sum(row["measured"] for row in rows), sum(row["reused"] for row in rows)) == (2, 5)
    assert describe_missing(data) is None
    assert all(row["ok"] for row in lumina("shard verify data")[1])


@pytest.mark.parametrize("names", ["ab", "abcdef"])
def test_shards_whose_images_were_all_replaced_are_read(data, lumina, names):
    update(lumina, *names)
    rows = lumina("shard cat data")[1]
    assert [row["key"] for row in rows if "scores" not in row] == list(names)
    code, steps, _ = lumina('shard select data best --where "entropy >= 0"')
    expected = (1, []) if names == "abcdef" else (0, [None, 2])
    assert (code, [step.get("without_value") for step in steps or []]) == expected


def test_removed_images_leave_no_note(data, lumina):
    Path("photos/b.png").unlink()
    Path("photos/b.txt").unlink()
    err = lumina("shard photos data --per-shard 2 --removed drop")[2]
    assert "the overlays of data (scores) keep the values of the remaining images" in err
    code, rows, err = lumina("shard cat data")
    assert (code, err, len([row for row in rows if "scores" in row])) == (0, "", 5)


def test_an_overlay_of_another_folder_is_refused(data, lumina):
    for name in "abcdef":
        add_photo(Path("others"), name, 50 + ord(name))
    assert lumina("shard others data2 --per-shard 2")[0] == 0
    shutil.copytree("data/overlays", "data2/overlays")
    words = "overlay scores@0001 does not match: data2"
    for command in ("cat data2", "stats data2", "select data2 best --by entropy --best 2", "preview data2"):
        code, _, err = lumina(f"shard {command}")
        assert (code, words in err) == (1, True), command
    assert lumina("shard cat data2?overlay=")[0] == 0


@pytest.mark.slow
def test_latents_of_unchanged_images_are_used(data, lumina):
    assert lumina("shard encode data --size 64")[0] == 0
    update(lumina, "a", "g")
    find = PrecomputedLatents(find_model("nano"), [64])
    found = {row["key"]: list(find(row)) for row in read_shards(data)}
    assert found == {name: [64] for name in "bcdef"} | {"a": [], "g": []}
    code, _, err = lumina("train nano out=run data=data --stage low --dry-run")
    assert (code, err.count("have no values of scores@0001, latents-64@0001")) == (0, 1)
    assert "--size 64 --model MODEL`; training encodes what is missing" in err


def test_an_overlay_of_one_changed_sample_does_not_block_the_folder(data, lumina):
    Path("rows.jsonl").write_text(json.dumps({"key": "b", "captions": {"en": {"tags": "one, two"}}}) + "\n")
    assert lumina("shard overlay data rows.jsonl")[0] == 0
    update(lumina, "a", "b")
    code, rows, _ = lumina("shard cat data")
    assert (code, ["tags" in row["captions"]["en"] for row in rows]) == (0, [False] * 6)

"""Order of overlays: the newest wins, each is correct alone, and hidden samples are reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.overlays.reader import newest_version
from lumina_cli.core.shards.overlays.verify import describe_overlays
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import read_source


@pytest.fixture
def shards(tmp_path) -> str:
    rows = []
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3), np.uint8)
        captions = {"en": {"short": f"a red car {i}"}}
        rows.append({"key": f"k{i}", "image": Image.fromarray(noise), "captions": captions})
    list(write_shards(rows, tmp_path / "s", per_shard=2))
    return str(tmp_path / "s")


def told(number: int, text: str) -> dict:
    return {"key": f"k{number}", "captions": {"en": {"short": text}}}


def shorts(source: str) -> list[str]:
    return [row["captions"]["en"]["short"] for row in read_source(source)]


def lay(shards: str, rows: list[dict], name: str, add: bool = False) -> list[str]:
    said: list[str] = []
    list(apply_rows(shards, rows, name, add, said.append))
    return said


def test_the_newest_overlay_wins_regardless_of_its_name(shards):
    lay(shards, [told(0, "first"), told(1, "first")], "zzz")
    lay(shards, [told(0, "second")], "aaa")
    assert shorts(shards)[:2] == ["second", "first"]
    lay(shards, [told(0, "third")], "mmm")
    assert shorts(shards)[0] == "third"
    lay(shards, [told(0, "fourth")], "aaa")
    assert shorts(shards)[0] == "fourth"
    found = {row["overlay"]: row["order"] for row in describe_overlays(shards) if row["version"] == "0001"}
    assert found == {"zzz": 1, "aaa": 2, "mmm": 3}
    assert shorts(f"{shards}?overlay=aaa,zzz")[0] == "first"  # a source names its own order


def test_versions_without_an_order_are_the_oldest(shards):
    lay(shards, [told(0, "new")], "aaa")
    lay(shards, [told(0, "old")], "zzz")
    lay(shards, [told(0, "older")], "mmm")
    for name in ("zzz", "mmm"):
        place = Path(newest_version(shards, name).folder) / "overlay.json"
        info = json.loads(place.read_text())
        del info["order"]
        place.write_text(json.dumps(info))
    assert shorts(shards)[0] == "new"
    assert shorts(f"{shards}?overlay=mmm,zzz")[0] == "old"
    Path(newest_version(shards, "aaa").folder, "overlay.json").unlink()
    assert shorts(shards)[0] == "old"  # of equal ones the last name


def test_a_resumed_overlay_keeps_its_order(shards):
    running = apply_rows(shards, [told(i, "early") for i in range(5)], "early")
    next(running)
    running.close()
    lay(shards, [told(0, "late")], "late")
    lay(shards, [told(i, "early") for i in range(5)], "early")
    assert shorts(shards)[:2] == ["late", "early"]


def test_an_overlay_is_correct_alone_and_joined(shards):
    same = [told(i, f"a blue car {i}") for i in range(5)]
    lay(shards, same, "one")
    lay(shards, same, "two")
    lay(shards, [told(0, "a red car 0")], "back")  # what the sample says, but no longer the overlays
    assert shorts(f"{shards}?overlay=two") == [f"a blue car {i}" for i in range(5)]
    assert shorts(f"{shards}?overlay=one") == shorts(f"{shards}?overlay=two")
    assert shorts(shards) == ["a red car 0", *(f"a blue car {i}" for i in range(1, 5))]
    assert shorts(f"{shards}?overlay=") == [f"a red car {i}" for i in range(5)]


def test_measured_scores_are_not_copied_into_an_overlay(shards):
    list(score_shards(shards, ["entropy"]))
    rows = [
        json.loads(json.dumps(row, default=str)) | told(i, "new") for i, row in enumerate(read_source(shards))
    ]
    assert all("entropy" in row["scores"] for row in rows)
    lay(shards, rows, "captions")
    assert newest_version(shards, "captions").info["fields"] == ["captions"]
    assert "scores" not in next(read_source(f"{shards}?overlay=captions"))


def test_samples_hidden_by_a_partial_overlay_are_reported(shards):
    assert lay(shards, [told(i, f"full {i}") for i in range(5)], "captions") == []
    part = [told(1, "part")]
    [line] = lay(shards, part, "captions")
    assert line == (
        "captions@0001 covers 4 samples that these rows do not; they are hidden now; --add keeps them"
    )
    assert shorts(shards)[:3] == ["a red car 0", "part", "a red car 2"]
    assert lay(shards, part, "captions") == []  # no new version, nothing more is hidden
    assert lay(shards, part, "captions", add=True) == []
    assert shorts(shards) == ["full 0", "part", "full 2", "full 3", "full 4"]
    assert newest_version(shards, "captions").version == "0003"
    lay(shards, part, "captions", add=True)
    assert newest_version(shards, "captions").version == "0003"


def test_rows_of_other_shards_find_the_samples_made_of_them(tmp_path, shards, capsys):
    rows = [
        {"key": row["key"], "image": str(row["image"]), "captions": {"en": {"short": "new"}}}
        for row in read_source(shards)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "data")
    assert run(["shard", str(tmp_path / "rows.jsonl"), data, "--per-shard", "3"]) == 0
    for row in rows:
        row["captions"]["en"]["short"] = f"of {row['image']}"
        row["key"] = "k0"  # ignored: the image decides
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert run(["shard", "overlay", data, str(tmp_path / "rows.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["matched"] == 5
    assert {row["origin"]: row["captions"]["en"]["short"] for row in read_source(data)} == {
        row["image"]: f"of {row['image']}" for row in rows
    }


def test_keys_of_unrelated_shards_do_not_match(tmp_path, shards):
    photos, first, second = tmp_path / "photos", tmp_path / "first", tmp_path / "second"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (i * 60, 0, 0)).save(photos / f"k{i}.png")
    list(write_shards(read_source(photos), first))
    list(write_shards(read_source(first), second))
    rows = [
        json.loads(json.dumps(row, default=str)) | told(i, "new") for i, row in enumerate(read_source(first))
    ]
    assert all(row["image"].startswith(f"{first}/000000.tar#") for row in rows)
    lay(str(second), rows, "captions")
    assert shorts(str(second)) == ["new"] * 3
    with pytest.raises(LuminaError, match="none of 3 rows matches a sample"):
        lay(shards, rows, "captions")  # the same keys, but other images

"""New versions of overlays: over shards that grew, over earlier versions, and of rows with errors."""

import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation import scores as scoring
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.dataset.precomputed import PrecomputedLatents
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.overlays import apply as laying
from lumina_cli.core.shards.overlays import match
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.overlays.reader import newest_version
from lumina_cli.core.shards.overlays.verify import describe_overlays
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import open_shards
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import read_source


def samples(count: int) -> list[dict]:
    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3), np.uint8)
        rows.append(
            {"key": f"k{i}", "image": Image.fromarray(noise), "captions": {"en": {"short": f"car {i}"}}}
        )
    return rows


@pytest.fixture
def shards(tmp_path) -> str:
    list(write_shards(samples(5), tmp_path / "s", per_shard=2))
    return str(tmp_path / "s")


def told(number: int, text: str) -> dict:
    return {"key": f"k{number}", "captions": {"en": {"short": text}}}


def lay(shards: str, rows: list[dict], name: str = "captions", add: bool = False) -> list[str]:
    said: list[str] = []
    list(apply_rows(shards, rows, name, add, said.append))
    return said


def shorts(source: str) -> list[str]:
    return [row["captions"]["en"]["short"] for row in read_source(source)]


# Shards that grew


def test_two_overlays_of_a_folder_that_grew(shards, tmp_path):
    lay(shards, [told(i, f"first {i}") for i in range(5)])
    notes = [{"key": f"k{i}", "note": f"note {i}"} for i in range(5)]
    lay(shards, notes, "notes")
    list(write_shards(samples(7), shards, per_shard=2))
    assert shorts(shards) == [*(f"first {i}" for i in range(5)), "car 5", "car 6"]
    said = lay(shards, [told(i, f"second {i}") for i in (5, 6)])
    assert said == [
        "captions@0001 covers 5 samples that these rows do not; they are hidden now; --add keeps them"
    ]
    lay(shards, [told(i, f"second {i}") for i in (5, 6)], add=True)
    assert shorts(shards) == [*(f"first {i}" for i in range(5)), "second 5", "second 6"]
    assert [row.get("note") for row in read_source(shards)] == [*(f"note {i}" for i in range(5)), None, None]
    lay(shards, [*notes, {"key": "k6", "note": "note 6"}], "notes")
    assert shorts(shards) == [*(f"first {i}" for i in range(5)), "second 5", "second 6"]
    assert [row.get("note") for row in read_source(shards)] == [
        *(f"note {i}" for i in range(5)),
        None,
        "note 6",
    ]
    assert all(row["ok"] for row in verify_shards(shards))


@pytest.mark.parametrize("add", [False, True])
def test_the_same_rows_over_a_folder_that_grew(shards, add):
    mine, notes = [told(i, f"mine {i}") for i in range(5)], [{"key": "k4", "note": "so"}]
    lay(shards, mine, add=add)
    lay(shards, notes, "notes", add=add)
    list(write_shards(samples(7), shards, per_shard=2))
    lay(shards, notes, "notes", add=add)
    lay(shards, mine, add=add)
    assert shorts(shards) == [*(f"mine {i}" for i in range(5)), "car 5", "car 6"]
    assert [row.get("note") for row in read_source(shards)] == [None] * 4 + ["so", None, None]


# Rows with errors


def test_rows_with_an_error_are_counted_and_skipped(shards, tmp_path, capsys):
    bad = {**told(1, "half a caption"), "error": "the engine broke off", "code": "engine"}
    fine = told(2, "whole") | {"error": None, "code": "fine"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (bad, fine)))
    assert run(["shard", "overlay", shards, str(file)]) == 0
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert [last[name] for name in ("rows", "matched", "unmatched", "failed")] == [2, 1, 0, 1]
    assert "1 of 2 rows have an error and were not applied: k1: the engine broke off" in err
    assert shorts(shards) == ["car 0", "car 1", "whole", "car 3", "car 4"]
    assert not any({"error", "code"} & row.keys() for row in read_source(shards))
    with pytest.raises(LuminaError, match=r"each of 1 rows has an error, .*: k1: the engine broke off"):
        lay(shards, [bad], "other")


def test_a_stored_error_is_removed_by_the_next_version(shards, monkeypatch):
    monkeypatch.setattr(laying, "NOT_FIELDS", ("image", "key"))
    monkeypatch.setattr(match, "get_error", lambda row: None)
    lay(shards, [told(1, "x") | {"error": "once"}])
    monkeypatch.undo()
    assert list(read_source(shards))[1]["error"] == "once"
    lay(shards, [told(0, "y")], add=True)
    assert not any("error" in row for row in read_source(shards))
    assert shorts(shards)[:2] == ["y", "x"]


# Names and numbers


@pytest.mark.parametrize("name", ["scores", "latents-128", "text-v2"])
def test_reserved_names_are_refused(shards, name):
    with pytest.raises(UsageError, match=f"the name {name} is reserved for"):
        lay(shards, [told(0, "x")], name)
    assert not filesystem.is_dir(f"{shards}/overlays")
    lay(shards, [told(0, "x")], f"my-{name}")


def test_an_overlay_of_no_encoder_has_no_latents(shards, tiny_folder):
    version = begin_version(shards, "latents-64", {"rows": "abc"})
    tars = open_shards(shards)
    for tar in tars:
        version.write(tar, read_index(tar), [])
    version.finish(tars)
    assert PrecomputedLatents(tiny_folder, [64])(next(read_source(shards))) == {}


def test_applied_scores_are_not_measured_scores(shards):
    version = begin_version(shards, "scores", {"rows": "abc"})
    tars = open_shards(shards)
    for tar in tars:
        version.write(tar, read_index(tar), [])
    version.finish(tars)
    assert sum(row["measured"] for row in score_shards(shards, ["entropy"])) == 5
    assert all(row["scores"]["entropy"] > 0 for row in read_source(shards))


def versions(shards: str) -> list[str]:
    return [f"{row['overlay']}@{row['version']}" for row in describe_overlays(shards)]


@pytest.mark.parametrize("how", ["here", "memory"])
def test_version_numbers_are_not_reused(tmp_path, shards, how):
    if how == "memory":
        shards = f"memory://overlay-again/{tmp_path.name}"
        list(write_shards(samples(3), shards, per_shard=2))
    lay(shards, [told(0, "one")])
    lay(shards, [told(0, "two")])
    assert run(["shard", "overlay", shards, "--remove", "captions@0002"]) == 0
    lay(shards, [told(0, "three")])
    assert versions(shards) == ["captions@0001", "captions@0003"]
    assert run(["shard", "overlay", shards, "--remove", "captions"]) == 0
    assert versions(shards) == []
    lay(shards, [told(0, "four")])
    assert versions(shards) == ["captions@0004"]
    lay(shards, [told(0, "other")], "others")
    assert versions(shards) == ["captions@0004", "others@0001"]


def test_caption_scores_identify_an_overlay_by_its_content(shards):
    def scores() -> list:
        list(score_shards(shards, ["caption"]))
        return [row["scores"].get("caption") if "scores" in row else None for row in read_source(shards)][:2]

    def scored(number: int, score: float) -> None:
        lay(shards, [{"key": f"k{number}", "caption_scores": {"en": {"short": score}}}])

    scored(0, 0.25)
    assert scores() == [0.25, None]
    folder = newest_version(shards, "captions").folder
    for name in filesystem.list_sizes(folder):  # by hand, so nothing notes the number
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)
    scored(1, 0.5)
    assert newest_version(shards, "captions").version == "0001"
    assert scores() == [None, 0.5]


def test_scores_of_another_recipe_are_measured_again(shards, monkeypatch):
    monkeypatch.setattr(scoring, "RECIPES", {"sharpness": 1})
    monkeypatch.setattr(
        scoring,
        "measure",
        lambda pictures, by: [{"scores": dict.fromkeys(by, -1.0)} for _ in pictures],
    )
    list(score_shards(shards, ["sharpness", "entropy"]))
    place = f"{newest_version(shards, 'scores').folder}/overlay.json"
    info = json.loads(filesystem.read_file(place))
    assert info["settings"].pop("recipes") == {"sharpness": 1, "entropy": 1}
    filesystem.write_file(place, json.dumps(info).encode())  # of a version that knew no recipes
    monkeypatch.undo()
    list(score_shards(shards, ["entropy"]))
    found = [row["scores"] for row in read_source(shards)]
    assert [row["entropy"] for row in found] == [-1.0] * 5
    assert all(row["sharpness"] > 0 for row in found)
    assert newest_version(shards, "scores").info["settings"]["recipes"] == {"sharpness": 2, "entropy": 1}


# Writers


def test_the_newest_version_is_looked_up_under_the_lock(shards, monkeypatch):
    """No version can be written between the lookup of the newest one and the begin of the next."""
    lay(shards, [told(0, "one")])
    asked, real = [], laying._version_to_extend

    def base(*args):
        with pytest.raises(LuminaError, match="being written by another process"):
            lock_folder(f"{shards}/overlays/captions")
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(laying, "_version_to_extend", base)
    lay(shards, [told(1, "two")], add=True)
    assert len(asked) == 1
    os.close(lock_folder(f"{shards}/overlays/captions"))  # let go at the end


@pytest.mark.parametrize("link", ["overlays", "overlays/captions", "overlays/captions/0001"])
def test_nothing_is_written_through_a_link(shards, tmp_path, link):
    outside = tmp_path / "outside"
    lay(shards, [told(0, "one")])
    os.rename(f"{shards}/{link}", outside)
    os.symlink(outside, f"{shards}/{link}")
    before = sorted(path.name for path in outside.rglob("*"))
    with pytest.raises(LuminaError, match="it is a symbolic link"):
        lay(shards, [told(0, "two")])
    assert sorted(path.name for path in outside.rglob("*")) == before


# What is read and written


def test_other_overlays_are_opened_only_for_shards_with_rows(shards, monkeypatch):
    lay(shards, [{"key": f"k{i}", "note": "so"} for i in range(5)], "notes")
    opened: Counter[str] = Counter()
    real = laying.OverlayJoiner.open
    monkeypatch.setattr(
        laying.OverlayJoiner,
        "open",
        lambda self, tar, *args, **more: (
            opened.update([filesystem.basename(tar)]) or real(self, tar, *args, **more)
        ),
    )
    lay(shards, [told(4, "x")])
    assert set(opened) == {"000002.tar"}


def test_values_are_written_only_if_there_are_any(shards):
    lay(shards, [told(0, "x")])
    folder = newest_version(shards, "captions").folder
    assert not os.path.exists(f"{folder}/values.parquet")
    lay(shards, [told(0, "x") | {"score": 1}])
    assert os.path.exists(f"{newest_version(shards, 'captions').folder}/values.parquet")
    assert all(row["ok"] for row in verify_shards(shards))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"score": 1' + "0" * 400, "{line} is not a JSON object: an integer has more than 300 digits"),
        ('"scores": {"a": 1' + "0" * 400 + "}", "{line} is not a JSON object: an integer has more than 300"),
        ('"score": NaN', "'score' of {} is not a number"),
        ('"scores": {"a": -Infinity}', "'scores' of {} is not {{name: number}}"),
        ('"scores": {"a\\ud800": 1}', "'scores' of {} is not {{name: number}}"),
        ('"hashes": {"a": "\\udc00"}', "'hashes' of {} is not {{name: text}}"),
    ],
    ids=["score", "scores", "nan", "infinity", "name", "hash"],
)
def test_odd_numbers_are_refused_by_their_line(shards, tmp_path, text, words, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"key": "k0", "score": 1}\n{"key": "k1", ' + text + "}\n")
    assert run(["shard", "overlay", shards, str(file)]) == 1
    assert words.format(f"{file} line 2 (key k1)", line=f"{file} line 2") in capsys.readouterr().err
    assert not os.path.exists(f"{shards}/overlays")


def test_large_integers_and_odd_names_are_applied(shards):
    lay(shards, [{"key": "k0", "score": 2**60 + 1, "scores": {"a": -(2**60) - 1, "b": 3}, "x\ud800": "y"}])
    first = next(read_source(shards))
    assert first["score"] == 2.0**60
    assert first["scores"] == {"a": -(2.0**60), "b": 3}
    assert first["x\ud800"] == "y"
    assert all(row["ok"] for row in verify_shards(shards))


def test_file_names_are_indexed_once_per_depth(tmp_path, monkeypatch):
    """Many files of the same name cost no more than others: the indexes are not scanned per row."""
    photos = tmp_path / "photos"
    for i in range(40):
        (photos / f"c{i}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(photos / f"c{i}" / "image.png")
    data = str(tmp_path / "data")
    list(write_shards(read_source(photos), data))
    compared = []
    monkeypatch.setattr(match, "_tail", lambda *args, real=match._tail: compared.append(0) or real(*args))
    rows = [{"key": f"c{i}/image", "note": f"{i}"} for i in range(40)]
    lay(data, rows, "notes")
    assert len(compared) == 2 * 40
    found = {filesystem.basename(filesystem.parent(row["origin"])): row["note"] for row in read_source(data)}
    assert found == {f"c{i}": f"{i}" for i in range(40)}
    with pytest.raises(LuminaError, match="none of 3 rows"):
        lay(data, [{"key": "image"}, {"key": "a/" * 500 + "image"}, {"key": "9/image"}], "notes")

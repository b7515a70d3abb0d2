"""Rows of users and other tools applied to shards: replacements, refusals, and matching."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.report.stats import compute_stats
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.evals.captions.provenance import BROUGHT, caption_provenance
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.overlays.match import validate_row
from lumina_cli.core.shards.overlays.verify import describe_overlays
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import read_source

KEYS = ("alpha", "beta", "gamma")


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (32, 24), (40 * number, 90, 200))


@pytest.fixture
def shards(tmp_path) -> str:
    """Three samples in two shards; an engine generated both captions of each."""
    by = {"en": {"short": "nano", "tags": "nano"}}
    marks = {"captioned_by": by, "caption_scores": {"en": {"short": 0.5, "tags": 0.25}}}
    rows = [
        {"key": key, "image": picture(i), "captions": {"en": {"short": f"a {key}", "tags": key}}} | marks
        for i, key in enumerate(KEYS)
    ]
    list(write_shards(rows, tmp_path / "data", per_shard=2))
    return str(tmp_path / "data")


def rows_of(source: str) -> dict[str, dict]:
    return {row["key"]: row for row in read_source(source)}


def file_of(path, *lines: dict | str) -> str:
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


# Records of a caption


def test_records_of_a_replaced_caption_are_removed(shards):
    told = [
        {"key": "alpha", "captions": {"en": {"short": "my own words"}}},
        {
            "key": "beta",
            "captions": {"en": {"short": "a beta", "tags": "b"}},
            "captioned_by": {"en": {"tags": "me"}},
        },
    ]
    list(apply_rows(shards, told, "captions"))
    found = rows_of(shards)
    assert found["alpha"]["captions"]["en"] == {"short": "my own words", "tags": "alpha"}
    assert found["alpha"]["captioned_by"] == {"en": {"tags": "nano"}}
    assert found["alpha"]["caption_scores"] == {"en": {"tags": 0.25}}
    assert found["beta"]["captioned_by"] == {"en": {"short": "nano", "tags": "me"}}  # "short" is unchanged
    assert found["beta"]["caption_scores"] == {"en": {"short": 0.5}}
    assert found["gamma"]["captioned_by"] == {"en": {"short": "nano", "tags": "nano"}}
    own = {row["key"]: row for row in caption_provenance(found.values())}
    assert own["alpha"][BROUGHT] == {"en": {"short": "my own words"}}
    assert own["alpha"]["captions"] == {"en": {"tags": "alpha"}}
    assert rows_of(f"{shards}?overlay=")["alpha"]["captioned_by"]["en"]["short"] == "nano"


def test_a_file_of_which_every_caption_was_replaced_names_no_engine(shards):
    list(
        apply_rows(
            shards, [{"key": key, "captions": {"en": {"short": "x", "tags": "y"}}} for key in KEYS], "mine"
        )
    )
    rows = caption_provenance(read_source(shards))
    assert all(row["captions"] == {} and row[BROUGHT]["en"] == {"short": "x", "tags": "y"} for row in rows)


def test_removals_survive_a_merge_with_the_kept_version(shards):
    first = {"key": "alpha", "captions": {"en": {"short": "one"}}, "captioned_by": {"en": {"short": "other"}}}
    list(apply_rows(shards, [first, {"key": "beta", "captions": {"en": {"tags": "mine"}}}], "captions"))
    assert rows_of(shards)["alpha"]["captioned_by"]["en"]["short"] == "other"
    list(apply_rows(shards, [{"key": "alpha", "captions": {"en": {"short": "two"}}}], "captions", add=True))
    found = rows_of(shards)
    assert found["alpha"]["captions"]["en"]["short"] == "two"
    assert found["alpha"]["captioned_by"] == {"en": {"tags": "nano"}}
    assert found["beta"]["captioned_by"] == {"en": {"short": "nano"}}  # the null of the first version is kept
    back = {
        "key": "alpha",
        "captions": {"en": {"short": "a alpha"}},
        "captioned_by": {"en": {"short": "nano"}},
    }
    list(
        apply_rows(shards, [back], "captions", add=True)
    )  # what the shards say, over what the version before says
    assert rows_of(shards)["alpha"]["captions"]["en"]["short"] == "a alpha"
    assert rows_of(shards)["alpha"]["captioned_by"]["en"]["short"] == "nano"
    assert all(row["ok"] for row in verify_shards(shards))


# Malformed rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"captions": {"en": "just a string"}}, "'captions' of {} is not {{language: {{level: text}}}}"),
        ({"captions": []}, "'captions' of {} is not {{language: {{level: text}}}}"),
        ({"captions": {"en": {"short": 3}}}, "'captions' of {} is not {{language: {{level: text}}}}"),
        ({"scores": {"clip": "high"}}, "'scores' of {} is not {{name: number}}"),
        ({"hashes": {"phash": 7}}, "'hashes' of {} is not {{name: text}}"),
        ({"score": "best"}, "'score' of {} is not a number"),
    ],
)
def test_a_malformed_row_is_refused_by_its_line(shards, tmp_path, row, message, capsys):
    file = file_of(tmp_path / "mine.jsonl", {"key": "beta", "score": 1}, "", {"key": "alpha"} | row)
    assert run(["shard", "overlay", shards, file]) == 1
    assert message.format(f"{file} line 3 (key alpha)") in capsys.readouterr().err
    assert not os.path.exists(f"{shards}/overlays")
    with pytest.raises(LuminaError, match=r"row 1 \(key alpha\)"):
        list(apply_rows(shards, [{"key": "alpha"} | row], "captions"))


def test_single_captions_and_unknown_levels_are_accepted(shards, tmp_path, capsys):
    odd = {"key": "gamma", "captions": {"en": {"poem": "oh", "short": "s"}, "de": {"poem": "ach"}}}
    file = file_of(
        tmp_path / "mine.jsonl", {"key": "alpha", "caption": "by hand"}, {"key": "beta", "text": "so"}, odd
    )
    assert run(["shard", "overlay", shards, file]) == 0
    err = capsys.readouterr().err
    assert err.count("unknown caption levels: poem (2)") == 1
    found = rows_of(shards)
    assert found["alpha"]["captions"]["en"]["short"] == "by hand"
    assert "caption" not in found["alpha"]
    assert found["beta"]["captions"]["en"]["short"] == "so"


def test_readers_name_the_sample_and_the_overlay(shards, tmp_path):
    list(apply_rows(shards, [{"key": "alpha", "captions": {"en": {"short": "12345678"}}}], "captions"))
    place = f"{shards}/overlays/captions/0001/000000.tar"
    data = filesystem.read_file(place)
    good, bad = b'{"short": "12345678"}', b'"short and 12345678  "'
    assert good in data
    filesystem.write_file(place, data.replace(good, bad[: len(good) - 1] + b'"'))
    said = r"'captions' of .*000000.tar#alpha with the overlay captions@0001 is not"
    with pytest.raises(LuminaError, match=said):
        compute_stats(shards)
    left = list(read_shards(shards, lenient=True))
    assert [row["key"] for row in left] == list(KEYS)
    with pytest.raises(LuminaError, match=said):
        left[0]["image"].read()


# Removed versions


def versions(shards: str) -> list[str]:
    return [f"{row['overlay']}@{row['version']}" for row in describe_overlays(shards)]


@pytest.mark.parametrize("how", ["here", "memory"])
def test_overlays_are_removed(shards, tmp_path, capsys, how):
    if how == "memory":
        shards = f"memory://overlay-rows/{tmp_path.name}"
        list(write_shards([{"key": key, "image": picture(0)} for key in KEYS], shards, per_shard=2))
    for text in ("one", "two"):
        list(apply_rows(shards, [{"key": "alpha", "captions": {"en": {"short": text}}}], "captions"))
    list(apply_rows(shards, [{"key": "alpha", "score": 3}], "other"))
    assert versions(shards) == ["captions@0001", "captions@0002", "other@0001"]
    assert run(["shard", "overlay", shards, "--remove", "captions@0002"]) == 0
    assert json.loads(capsys.readouterr().out) == {"overlay": "captions", "version": "0002", "removed": True}
    assert rows_of(shards)["alpha"]["captions"]["en"]["short"] == "one"
    for word in ("..", "captions@..", "captions@", "../data", "caption", "captions@0002", "/", ""):
        assert run(["shard", "overlay", shards, "--remove", word]) == 2, word
    assert "it has captions, other, captions@0001, other@0001" in capsys.readouterr().err
    assert run(["shard", "overlay", shards, "--remove", "captions"]) == 0
    assert versions(shards) == ["other@0001"]
    assert len(rows_of(shards)) == 3
    assert run(["shard", "overlay", shards, "rows.jsonl", "--remove", "other"]) == 2


def test_folders_that_are_not_overlays_are_not_removed(shards, tmp_path):
    list(apply_rows(shards, [{"key": "alpha", "score": 3}], "other"))
    folder = f"{shards}/overlays/other/0001"
    os.mkdir(f"{folder}/inner")
    assert run(["shard", "overlay", shards, "--remove", "other"]) == 1
    assert os.path.exists(f"{folder}/overlay.json")
    os.rmdir(f"{folder}/inner")
    outside = tmp_path / "outside"
    os.rename(f"{shards}/overlays/other", outside)
    os.symlink(outside, f"{shards}/overlays/other")
    assert run(["shard", "overlay", shards, "--remove", "other"]) == 1
    assert os.path.exists(outside / "0001" / "overlay.json")


# Matching


@pytest.fixture
def named(tmp_path) -> str:
    """Shards of files with various names."""
    for number, name in enumerate(
        ("猫.png", "a b.png", "cats/tom.png", "dogs/tom.png", "v1.2.png", "u\u0308.png")
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    list(write_shards(read_source(tmp_path / "photos"), tmp_path / "named", per_shard=2))
    return str(tmp_path / "named")


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("猫", "猫.png"),
        ("猫.png", "猫.png"),
        ("a b", "a b.png"),
        ("a_b", "a b.png"),
        ("cats/tom", "cats/tom.png"),
        ("dogs/tom.png", "dogs/tom.png"),
        ("v1.2", "v1.2.png"),
        ("\u00fc", "u\u0308.png"),
        ("photos/a b", "a b.png"),
    ],
)
def test_keys_may_be_names_of_files(named, key, file):
    list(apply_rows(named, [{"key": key, "captions": {"en": {"short": "this one"}}}], "captions"))
    found = [row["origin"] for row in read_shards(named) if row.get("captions")]
    assert [origin.endswith(f"/{file}") for origin in found] == [True]


def test_rows_that_match_nothing_are_named(named, tmp_path, capsys):
    rows = [{"key": key, "score": 1} for key in ("tom", "om", "b", "v1", "nobody")]
    file = file_of(tmp_path / "mine.jsonl", *rows, {"key": "猫", "score": 1})
    assert run(["shard", "overlay", named, file]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["unmatched"] == 5
    assert "5 of 6 rows do not match a sample" in err
    assert (
        ": tom, om, b; 'image' or 'key' must be one that `lumina shard cat` prints, or 'key' the name of"
        in err
    )
    with pytest.raises(LuminaError, match=r"none of 5 rows .*: tom, om, b; "):
        list(apply_rows(named, rows, "captions"))
    with pytest.raises(UsageError):
        list(apply_rows(named, [{"key": "猫"}], "a/b"))


@pytest.mark.filterwarnings("ignore")
def test_other_programs_read_keys_of_all_alphabets(named, tmp_path):
    import datasets
    import webdataset

    tars = [f"{named}/{name}" for name in sorted(os.listdir(named)) if name.endswith(".tar")]
    keys = [entry["key"] for tar in tars for entry in read_index(tar)]
    assert {"猫", "\u00fc", "a_b", "cats_tom", "v1_2"} < set(keys)
    assert [row["__key__"] for row in webdataset.WebDataset(tars, shardshuffle=False)] == keys
    found = datasets.load_dataset(
        "webdataset", data_files=tars, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert [row["__key__"] for row in found] == keys
    listed = []
    for tar in tars:
        subprocess.run(["tar", "xf", tar, "-C", str(tmp_path)], check=True, env={**os.environ, "LC_ALL": "C"})
        with tarfile.open(tar) as file:
            listed += file.getnames()
    assert {name.partition(".")[0] for name in listed} == set(keys)
    assert all(os.path.exists(tmp_path / name) for name in listed)
    images = {row["key"]: row["image"].read() for row in read_shards(named)}
    assert images["猫"] == (tmp_path / "photos" / "猫.png").read_bytes()
    assert all(row["ok"] for row in verify_shards(named))


def test_rows_from_a_pipe_are_refused_by_their_line(shards, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO('{"key": "beta", "score": 1}\n{"key": "alpha", "captions": 3}\n')
    )
    assert run(["shard", "overlay", shards, "-"]) == 1
    assert "'captions' of line 2 (key alpha) is not" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [("0.5", 0.5), (" 7 ", 7.0), ("1e-3", 0.001), ("", None)])
def test_scores_of_tables_are_numbers(text, number):
    assert validate_row({"key": "a", "score": text}, "s.csv line 2")["score"] == number


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "5 of 10"])
def test_text_that_is_not_a_finite_number_is_refused(text):
    with pytest.raises(LuminaError, match=r"'score' of s\.csv line 2"):
        validate_row({"key": "a", "score": text}, "s.csv line 2")

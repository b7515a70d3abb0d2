"""`lumina eval captions` on rows that name their engine, have no image, or failed."""

import json
from pathlib import Path

import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.truth import scene_of, score_captions
from lumina_cli.core.sources.source import read_source


@pytest.fixture
def files(tmp_path):
    """Six nano rows without pictures; half their short captions are by an engine, and all of those wrong."""
    rows = list(read_source("nano:6?size=64"))
    for number, row in enumerate(rows):
        del row["image"]
        if number < 3:
            row["captions"]["en"]["short"] = "a red car"
            row["captioned_by"] = {"en": {"short": "nano"}}
        elif number == 5:
            row["error"] = "too dark"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{**row, "captioned_by": None} for row in rows if "error" not in row]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    return str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")


def test_only_captions_of_engines_are_scored_and_others_reported(files, capsys, tmp_path):
    assert run(["eval", "captions", files[0], "--page", str(tmp_path / "a.html")]) == 0
    out, err = capsys.readouterr()
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert (row["lang"], row["level"], row["captions"]) == ("en", "short", 3)
    assert row["truth"]["colours"]["f1"] < 0.5
    assert "a.jsonl: excluded: 20 caption types without an engine, 1 rows with an error" in err
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") == 5  # scenes are rendered again


def test_rows_without_images_are_joined_by_key(files, capsys):
    assert run(["eval", "captions", *files]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    short = [row for row in rows if (row["lang"], row["level"]) == ("en", "short")]
    assert [row["captions"] for row in short] == [3, 5]
    assert short[0]["agreement"] == {"b.jsonl": 1.0}  # of the three that the engine wrote


NOT_OURS = [
    "a beach",
    {"place": "beach"},
    {"layout": "single", "things": [], "relation": None, "backdrop": "sky", "light": "left"},
    {"layout": "single", "things": ["ball"], "relation": None, "backdrop": "sky", "light": "left"},
    {
        "layout": ["single"],
        "things": [{"kind": "ball"}],
        "relation": None,
        "backdrop": "sky",
        "light": "left",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("scene", NOT_OURS)
def test_foreign_scene_values_are_ignored(scene, files, capsys, tmp_path):
    rows = [json.loads(line) for line in Path(files[1]).read_text().splitlines()]
    foreign = {**rows[0], "scene": scene}
    path, page = tmp_path / "c.jsonl", tmp_path / "c.html"
    path.write_text("".join(json.dumps(row) + "\n" for row in [foreign, *rows[1:]]))
    assert run(["eval", "captions", str(path), "--page", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "a bug" not in err
    assert all(row["captions"] == 5 and "truth" in row for row in map(json.loads, out.splitlines()))
    assert page.read_text().count("data:image/jpeg") == 4  # of the foreign one there is no picture
    assert [scene_of(row) is not None for row in [foreign, *rows[1:]]] == [False, True, True, True, True]
    with pytest.raises(LuminaError, match=r"\(1 have one in another format\); rows of nano:N have one"):
        list(score_captions([foreign]))
    path.write_text(json.dumps(foreign) + "\n")
    assert run(["eval", "captions", str(path)]) == 0
    assert not [row for row in map(json.loads, capsys.readouterr().out.splitlines()) if "truth" in row]


def test_scenes_that_cannot_be_rendered_are_not_nano_scenes():
    row = next(read_source("nano:1?size=64"))
    assert scene_of(row)
    for name, value in (("kind", "cat"), ("tint", 3), ("x", "1"), ("size", 1e300), ("turn", float("nan"))):
        things = [{**row["scene"]["things"][0], name: value}, *row["scene"]["things"][1:]]
        assert scene_of({"scene": {**row["scene"], "things": things}}) is None, name

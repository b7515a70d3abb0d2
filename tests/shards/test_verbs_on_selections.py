"""Commands of shards on a selection: they use its shards, and nothing is packed into its folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.select import SelectionSettings, select_samples
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.manifest import read_schema
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import open_shards
from lumina_cli.core.shards.selection import read_samples, write_selection


@pytest.fixture
def places_of(tmp_path) -> tuple[str, str]:
    """Three shards of two samples, and a selection of three samples of the last two."""
    rows = []
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3), np.uint8)
        rows.append({"key": f"k{i}", "image": Image.fromarray(noise), "score": i})
    shards, best = str(tmp_path / "data"), str(tmp_path / "best")
    list(write_shards(rows, shards, per_shard=2))
    select_samples(shards, best, SelectionSettings(best=3))
    return shards, best


def rows_out(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_info_and_verify_cover_the_shards_of_a_selection(places_of, capsys):
    shards, best = places_of
    assert run(["shard", "info", best]) == 0
    found = [(row["shard"], row["samples"], row["selected"]) for row in rows_out(capsys)]
    assert found == [(f"{shards}/000001.tar", 2, 1), (f"{shards}/000002.tar", 2, 2)]
    assert run(["shard", "verify", best]) == 0
    *tars, last = rows_out(capsys)
    assert [(row["shard"], row["ok"]) for row in tars] == [(f"{shards}/00000{i}.tar", True) for i in (1, 2)]
    assert last == {"selection": best, "samples": 3, "ok": True, "problem": None}


def test_verify_reports_damage_and_missing_samples(places_of, capsys):
    shards, best = places_of
    tar = Path(shards, "000002.tar")
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert run(["shard", "verify", best]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["ok"] for line in out.splitlines()] == [True, False, True]
    assert "000002.tar" in err
    Path(best, "note.txt").write_text("of no matter")
    shutil.rmtree(shards)
    list(write_shards([{"key": "k4", "image": Image.new("RGB", (8, 8))}], shards))
    assert run(["shard", "verify", best]) == 1
    [last] = rows_out(capsys)
    assert (last["selection"], last["ok"]) == (best, False)


def test_nothing_is_packed_into_a_selection(places_of, tmp_path, capsys):
    shards, best = places_of
    before = sorted(Path(best).iterdir())
    for more in ([], ["--force"]):
        assert run(["shard", shards, best, *more]) == 2
        assert "best holds a selection; write the shards to another folder" in capsys.readouterr().err
    assert sorted(Path(best).iterdir()) == before
    with pytest.raises(LuminaError, match="best is a selection and does not hold shards"):
        open_shards(best)


@pytest.mark.parametrize("word", ["./best", "best/", "linked", "other/../best"])
def test_a_selection_does_not_replace_its_own_source(places_of, tmp_path, monkeypatch, capsys, word):
    _, best = places_of
    monkeypatch.chdir(tmp_path)
    Path("linked").symlink_to(best)
    Path("other").mkdir()
    before = {path: path.read_bytes() for path in Path(best).iterdir()}
    assert run(["shard", "select", best, word, "--best", "1", "--force"]) == 2
    assert "holds the selection that is the source" in capsys.readouterr().err
    assert run(["shard", "select", word, best, "--best", "1", "--force"]) == 2
    assert {path: path.read_bytes() for path in Path(best).iterdir()} == before


@pytest.mark.parametrize("how", ["here", "memory"])
def test_an_error_in_the_middle_leaves_the_earlier_selection(places_of, tmp_path, how):
    shards, best = places_of
    if how == "memory":
        best = f"memory://selection-verbs/{tmp_path.name}"
        select_samples(shards, best, SelectionSettings(best=3))
    before = {name: filesystem.read_file(f"{best}/{name}") for name in filesystem.list_sizes(best)}
    assert len(before) == 2
    part = read_schema(f"{best}/selection.parquet", "selection").empty_table()

    def parts():
        yield part
        raise LuminaError("it broke off")

    with pytest.raises(LuminaError, match="it broke off"):
        write_selection(best, shards, shards, parts(), {})
    assert {name: filesystem.read_file(f"{best}/{name}") for name in filesystem.list_sizes(best)} == before
    write_selection(best, shards, shards, [part], {})
    assert list(read_samples(best)) == []


def test_a_kill_before_the_last_file_leaves_no_selection(places_of, monkeypatch):
    """The earlier select.json must not remain with another table."""
    shards, best = places_of
    part = read_schema(f"{best}/selection.parquet", "selection").empty_table()

    def killed(place, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write_selection(best, shards, shards, [part], {})
    assert [path.name for path in Path(best).iterdir()] == ["selection.parquet"]

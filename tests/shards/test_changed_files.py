"""Image files that changed after packing: the next run names them and replaces them in their shards."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.shards.image_ref import ImageFile
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import read_shards

LATER = 10**9  # nanoseconds


def picture(path: Path, seed: int, size: tuple[int, int] = (32, 24)) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five bitmaps of the same size in bytes; the last one is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        picture(folder / f"{i}.bmp", i)
    (folder / "4.bmp").write_bytes(b"BM no picture")
    return folder


def pack(photos: Path, dest: Path, capsys, *words: str) -> tuple[int, str]:
    code = run(["shard", str(photos), str(dest), "--per-shard", "2", "--max-bad-rate", "1", *words])
    return code, capsys.readouterr().err


def date(path: Path, than: Path, later: int = LATER) -> None:
    """Set the date of a file to one after or before that of another file."""
    at = than.stat().st_mtime_ns + later
    os.utime(path, ns=(at, at))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--encode", "png")], ids=["copied", "encoded"])
def test_a_newer_image_is_named(photos, tmp_path, capsys, words):
    dest = tmp_path / "s"
    assert pack(photos, dest, capsys, *words)[0] == 0
    date(photos / "1.bmp", dest / "000000.tar")  # touched, but the same: it is read, and stays
    assert pack(photos, dest, capsys, *words)[0] == 0
    picture(photos / "1.bmp", 77)
    date(photos / "1.bmp", dest / "000000.tar")
    code, err = pack(photos, dest, capsys, *words)
    assert code == 0
    assert f"{dest}: rows with another image: 1 ({photos}/1.bmp); shards kept: 1, rewritten: 000000" in err
    assert "another image" not in pack(photos, dest, capsys, *words)[1]
    pack(photos, tmp_path / "one", capsys, *words)
    for name in ("000000.tar", "000001.tar", "manifest.parquet"):
        assert (dest / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_image_of_another_size_is_named_regardless_of_its_date(photos, tmp_path, capsys):
    dest = tmp_path / "s"
    pack(photos, dest, capsys)
    picture(photos / "3.bmp", 3, (40, 24))
    date(photos / "3.bmp", dest / "000001.tar", -LATER)
    assert "rows with another image: 1 (" in pack(photos, dest, capsys)[1]


def test_a_repaired_image_is_named(photos, tmp_path, capsys):
    dest = tmp_path / "s"
    pack(photos, dest, capsys)
    date(photos / "4.bmp", dest / "shards.json")
    assert pack(photos, dest, capsys)[0] == 0  # still broken
    picture(photos / "4.bmp", 4)
    date(photos / "4.bmp", dest / "shards.json")
    assert f"rows added: 1 ({photos}/4.bmp); shards kept: 2, new: 000002" in pack(photos, dest, capsys)[1]


def test_unchanged_files_are_not_read(photos, tmp_path, capsys, monkeypatch):
    dest = tmp_path / "s"
    pack(photos, dest, capsys)
    for path in photos.iterdir():
        date(path, dest / "000000.tar", -LATER)
    monkeypatch.setattr(ImageFile, "read", lambda image: pytest.fail(f"{image.place} was read"))
    assert pack(photos, dest, capsys)[0] == 0
    (photos / "2.bmp").unlink()
    rows = [{"key": str(i), "image": str(photos / f"{i}.bmp")} for i in range(5)]
    assert (
        len(list(write_shards(rows, dest, 2, 1.0, source=str(photos)))) == 2
    )  # a deleted file is not an error


def test_growing_and_unfinished_folders_check_for_changed_files(photos, tmp_path, capsys):
    dest, left = tmp_path / "s", tmp_path / "left"
    pack(photos, dest, capsys)
    rows = [{"key": str(i), "image": str(photos / f"{i}.bmp")} for i in range(5)]

    def dying():
        yield from rows[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_shards(dying(), left, 2, 1.0))
    shutil.copytree(left, tmp_path / "again")
    date(photos / "0.bmp", left / "000001.tar")
    assert [row.get("kept") for row in write_shards(rows, tmp_path / "again", 2, 1.0)] == [True, True]
    picture(photos / "0.bmp", 99)
    date(photos / "0.bmp", left / "000001.tar")
    picture(photos / "5.bmp", 5)
    err = pack(photos, dest, capsys)[1]
    assert f"rows added: 1 ({photos}/5.bmp); rows with another image: 1 ({photos}/0.bmp); shards kept" in err
    date(photos / "0.bmp", left / "000000.tar", -LATER)  # replaced by an older file: the journal detects it
    for workers in (0, 2):
        shutil.copytree(left, tmp_path / f"left-{workers}")
        found = list(write_shards(rows, tmp_path / f"left-{workers}", 2, 1.0, workers=workers))
        assert [row.get("kept", False) for row in found] == [False, True]


def test_a_rewritten_last_shard_uses_the_current_files(photos, tmp_path, capsys):
    dest = tmp_path / "s"
    (photos / "4.bmp").unlink()
    picture(photos / "4.png", 4)
    pack(photos, dest, capsys)
    picture(photos / "4.png", 44)
    picture(photos / "5.png", 5)
    date(photos / "4.png", dest / "000002.tar")
    assert pack(photos, dest, capsys)[0] == 0
    held = {row["key"]: row["image"].read() for row in read_shards(dest)}
    assert held["4"] == (photos / "4.png").read_bytes()

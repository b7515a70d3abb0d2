"""Shards and images on remote file systems: in memory and on a real S3 server."""

import io
import json
import os

import fsspec
import numpy as np
import pytest
from local_s3 import local_bucket
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.manifest import read_manifest
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import ShardReader, read_shards
from lumina_cli.core.sources.source import open_row_image, read_source

COUNT = 7


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 24, 3), np.uint8))


def put_photos(url: str) -> None:
    """Write images with captions next to them to two folders, and a file that is not an image."""
    system, path = fsspec.core.url_to_fs(url)
    system.makedirs(f"{path}/sub", exist_ok=True)
    for i in range(COUNT):
        buffer = io.BytesIO()
        noise(i).save(buffer, "PNG")
        folder = path if i < 4 else f"{path}/sub"
        system.pipe_file(f"{folder}/{i}.png", buffer.getvalue())
        system.pipe_file(f"{folder}/{i}.txt", f"noise {i}".encode())
    system.pipe_file(f"{path}/broken.jpg", b"\xff\xd8")


def check_everything(source: str, dest: str, local: str) -> None:
    """Pack `source` to `dest`, resume, read with every reader; the files equal those of a local run."""
    words = {"per_shard": 3, "max_bad_rate": 1.0}

    def stopped():
        yield from list(read_source(source, lenient=True))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_shards(stopped(), dest, **words))
    assert set(filesystem.list_sizes(dest)) == {"000000.tar", "000000.index.jsonl"}
    written = list(write_shards(read_source(source, lenient=True), dest, **words))
    assert [row.get("kept", False) for row in written] == [True, False, False]
    list(write_shards(read_source(source, lenient=True), local, **words))
    names = filesystem.list_sizes(local)
    assert len(names) == 9  # three tars, their indexes, manifest, totals, rejects
    assert filesystem.list_sizes(dest) == names
    assert all(
        filesystem.read_file(filesystem.join(dest, n)) == filesystem.read_file(filesystem.join(local, n))
        for n in names
    )
    assert all(row["ok"] for row in verify_shards(dest))
    rows = list(read_shards(dest))
    assert [row["key"] for row in rows] == ["0", "1", "2", "3", *(f"sub_{i}" for i in range(4, 7))]
    assert rows[5]["captions"] == {"en": {"short": "noise 5"}}
    assert ShardReader(dest)[5]["image"].open().tobytes() == noise(5).tobytes()
    assert open_row_image(json.loads(dump_row(rows[2]))).tobytes() == noise(2).tobytes()  # by its text
    assert sum(batch.num_rows for batch in read_manifest(dest)) == COUNT
    again = list(write_shards(read_source(dest), f"{dest}-again", per_shard=4))
    assert [row["samples"] for row in again] == [4, 3]


def test_an_in_memory_file_system_holds_shards(tmp_path):
    put_photos("memory://m/photos")
    check_everything("memory://m/photos", "memory://m/shards", str(tmp_path / "local"))


def test_rows_of_a_remote_file_name_images_next_to_it():
    put_photos("memory://rows/photos")
    lines = '{"image": "photos/1.png"}\n{"image": "memory://rows/photos/sub/5.png", "text": "five"}\n'
    fsspec.filesystem("memory").pipe_file("/rows/all.jsonl", lines.encode())
    rows = list(read_source("memory://rows/all.jsonl"))
    assert [open_row_image(row).tobytes() for row in rows] == [noise(1).tobytes(), noise(5).tobytes()]
    assert rows[1]["captions"] == {"en": {"short": "five"}}


def test_workers_cannot_write_to_memory():
    with pytest.raises(UsageError, match="memory://x is in the memory of this process"):
        list(write_shards([], "memory://x", workers=2))


def test_a_file_url_is_a_path(tmp_path):
    put_photos(str(tmp_path / "photos"))
    words = ["shard", f"file://{tmp_path}/photos", f"file://{tmp_path}/s", "--max-bad-rate", "1"]
    assert run(words) == 0
    assert len(ShardReader(tmp_path / "s")) == COUNT


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a local S3 server."""
    with local_bucket("pictures") as url:
        yield url


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_s3(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    os.mkdir(tmp_path / "scratch")
    put_photos(f"{bucket}/photos")
    check_everything(f"{bucket}/photos", f"{bucket}/shards", str(tmp_path / "local"))
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_s3_by_the_command_line(bucket, capsys):
    put_photos(f"{bucket}/more")
    words = ["shard", f"{bucket}/more", f"{bucket}/made", "--per-shard", "3", "--workers", "2"]
    assert run(words) == 3
    assert "1 of 8 images cannot be used" in capsys.readouterr().err
    assert run(["shard", "verify", f"{bucket}/made"]) == 0
    assert [json.loads(line)["ok"] for line in capsys.readouterr().out.splitlines()] == [True] * 3
    assert run(["shard", "cat", f"{bucket}/made"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["image"] == f"{bucket}/made/000000.tar#0.png"
    assert run(["shard", f"{bucket}/nothing", f"{bucket}/x"]) == 1
    assert "no such source" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_update_on_s3_that_was_killed_is_resumed(bucket, monkeypatch):
    put_photos(f"{bucket}/grown")
    source, move, told = f"{bucket}/grown", filesystem.move, []

    def pack(dest):
        return list(write_shards(read_source(source, lenient=True), dest, 3, 1.0, notify=told.append))

    for name in ("one", "two"):
        pack(f"{bucket}/{name}")
    before = {row["key"]: str(row["image"]).rpartition("/")[2] for row in read_shards(f"{bucket}/one")}
    data = filesystem.read_file(f"{source}/0.png")
    filesystem.write_file(f"{source}/00.png", data)
    filesystem.write_file(f"{source}/0.txt", b"a changed caption")
    pack(f"{bucket}/one")
    assert told[0].startswith(
        f"{bucket}/one: rows added: 1 ({source}/00.png); rows changed: 1 ({source}/0.png: cap"
    )
    after = {row["key"]: str(row["image"]).rpartition("/")[2] for row in read_shards(f"{bucket}/one")}
    assert {key: after[key] for key in before} == before
    moves = iter(range(2))

    def killed(source, target):
        if next(moves, None) is None:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(filesystem, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(f"{bucket}/two")
    monkeypatch.undo()
    with pytest.raises(LuminaError, match="is unfinished; resume it"):
        list(read_shards(f"{bucket}/two"))
    assert all(row["kept"] for row in pack(f"{bucket}/two"))
    names = filesystem.list_sizes(f"{bucket}/one")
    assert filesystem.list_sizes(f"{bucket}/two") == names
    for name in names:
        assert filesystem.read_file(f"{bucket}/one/{name}") == filesystem.read_file(f"{bucket}/two/{name}")
    assert filesystem.list_sizes(f"{bucket}/two/update") == {}


def test_a_client_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingDependency, match=r"gs://bucket/x .*: `pip install 'lumina-cli\[gcs\]'`"):
        read_source("gs://bucket/x")


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("zip://a::memory://b.zip", UsageError, "use a single file system"),
        ("nosuch://a", UsageError, "unsupported URL scheme"),
        ("memory://not/there", LuminaError, "no such source"),
    ],
)
def test_other_urls_are_refused(word, kind, message):
    with pytest.raises(kind, match=message):
        read_source(word)


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("s3://b/x/", ("s3://b/x", "s3://b", "x")),
        ("file:///tmp/x", ("/tmp/x", "/tmp", "x")),
        ("a/b", ("a/b", "a", "b")),
        ("b", ("b", ".", "b")),
        ("/", ("/", "/", "")),
    ],
)
def test_locations_are_split(place, parts):
    assert (filesystem.to_text(place), filesystem.parent(place), filesystem.basename(place)) == parts


@pytest.mark.parametrize("line", ["shard {} {}/data", "caption {} --engine noop", "shard cat {}"])
@pytest.mark.parametrize("url", ["jupyter://127.0.0.1/x", "reference://x", "github://x"])
def test_a_client_that_cannot_be_made_is_one_line(line, url, lumina, tmp_path):
    code, rows, err = lumina(line.format(url, tmp_path))
    assert (code, rows, err.count("\n")) == (1, [], 1)
    assert url in err
    assert "a bug" not in err
    assert not list(tmp_path.iterdir())

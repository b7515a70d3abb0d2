"""Rows of other people never reach the network; what they may name, and who permits more."""

import json
import os
import socket

import fsspec
import pytest

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io.allowed import allow_schemes, is_system_file, refuse_location
from lumina_cli.core.shards.image_ref import ImageFile
from lumina_cli.core.shards.selection import selected_shards
from lumina_cli.core.shards.tar import RejectedImage
from lumina_cli.core.sources.source import read_source

SCHEMES = ["jupyter", "gist", "dbfs", "reference", "zip", "hdfs", "webhdfs", "github", "s3", "ftp", "https"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail if a client is opened, or a socket is connected."""

    def refuse(*_args, **_settings):
        raise AssertionError("a row opened a connection")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    allow_schemes(())


@pytest.fixture
def rows(tmp_path):
    """Return a file of rows: one good image, then one row per scheme."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    lines = [{"image": "good.png"}, *({"image": f"{scheme}://127.0.0.1:9/x.png"} for scheme in SCHEMES)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("lenient", [False, True])
def test_a_scheme_that_is_not_allowed_is_a_reject(rows, lenient):
    first, *others = read_source(rows, lenient=lenient)
    assert first["image"] == str(rows.with_name("good.png"))
    assert all(isinstance(row["image"], RejectedImage) for row in others)
    codes = [row["image"].code for row in others]
    assert codes == ["scheme"] * (len(SCHEMES) - 2) + ["web"] * 2


def test_rows_with_poison_are_rejects_of_every_command(rows, lumina, tmp_path):
    count = len(SCHEMES)
    code, (shard,), _ = lumina(f"shard {rows} {tmp_path}/data --max-bad-rate 1")
    assert (code, shard["samples"], shard["rejects"]) == (0, 1, count)
    code, written, err = lumina(f"caption {rows} --engine noop --levels short --max-bad-rate 1")
    assert (code, len(written)) == (0, count + 1)
    assert [row.get("code") for row in written][1:3] == ["scheme", "scheme"]
    code, _, err = lumina(f"shard {rows} {tmp_path}/other")
    assert code == 3
    assert "of 12 images cannot be used" in err


def test_the_reject_names_the_option(rows):
    row = list(read_source(rows))[9]
    assert row["image"].reason == "rows do not read from s3:// unless --allow s3 permits it"


def test_an_allowed_scheme_reaches_its_client(rows):
    allow_schemes(["S3", "github://"])
    found = [row["image"] for row in read_source(rows)]
    assert found[9] == "s3://127.0.0.1:9/x.png"
    assert found[8] == "github://127.0.0.1:9/x.png"
    assert isinstance(found[1], RejectedImage)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https", "images are not fetched from the web"),
        ("s4", "not a URL scheme"),
        ("../x", "not a URL scheme"),
    ],
)
def test_what_cannot_be_allowed_is_named(name, message, lumina, rows, tmp_path):
    with pytest.raises(UsageError, match=message):
        allow_schemes([name])
    code, _, err = lumina(f"shard {rows} {tmp_path}/data --allow {name}")
    assert (code, message in err) == (2, True)


def test_an_image_in_the_folder_of_its_rows_is_allowed():
    assert refuse_location("s3://bucket/images/1.jpg", "s3://bucket") is None
    assert refuse_location("s3://bucket-2/images/1.jpg", "s3://bucket")[0] == "scheme"
    assert refuse_location("s3://bucket/../other/1.jpg", "s3://bucket")[0] == "scheme"
    assert refuse_location("gs://bucket/1.jpg", "s3://bucket")[0] == "scheme"
    assert refuse_location("photos/1.jpg", "s3://bucket") is None
    assert refuse_location("file:///photos/1.jpg") is None


def test_depth_and_masks_of_a_row_are_screened_like_its_image(rows):
    rows.write_text(json.dumps({"image": "good.png", "depth": "webhdfs://h/000000.tar#a.depth.png"}) + "\n")
    (row,) = read_source(rows)
    assert (row["image"].code, "'depth' of the row is webhdfs://" in row["image"].reason) == ("scheme", True)


@pytest.mark.parametrize(
    "place",
    [
        "simplecache::http://h/x.png", "filecache::s3://b/x.png", "blockcache::gs://b/x.png", "dir::file:///x",
        "zip://x::file:///y.zip", "tar::simplecache::s3://b/x", "file::memory://x", "file:///a::b.png",
    ],
)  # fmt: skip
def test_a_chain_of_file_systems_is_a_reject_with_its_reason(place, rows, lumina, tmp_path):
    rows.write_text("".join(json.dumps({"image": name}) + "\n" for name in ("good.png", place)))
    code, _, _ = lumina(f"shard {rows} {tmp_path}/data --max-bad-rate 1")
    (reject,) = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert (code, reject["row"], reject["code"]) == (0, 1, "scheme")
    assert "chained file systems ('::') are not supported; use a single file system" in reject["reason"]


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the files are those of Linux")
@pytest.mark.parametrize(
    "place", ["/proc/kmsg", "/proc/self/environ", "/dev/null", "/proc/../proc/self/status", "link.png"]
)
def test_files_of_the_system_are_not_opened(place, rows, lumina, tmp_path, monkeypatch):
    if place == "link.png":
        (tmp_path / place).symlink_to("/proc/self/environ")
    rows.write_text("".join(json.dumps({"image": name}) + "\n" for name in ("good.png", place)))
    code, _, _ = lumina(f"shard {rows} {tmp_path}/data --max-bad-rate 1")
    (reject,) = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert (code, reject["row"], reject["code"]) == (0, 1, "not_a_file")
    assert "a file of the system, which rows must not name" in reject["reason"]
    opened = []
    monkeypatch.setattr(os, "open", lambda *words: opened.append(words))
    with pytest.raises(InvalidImage, match="a file of the system"):
        ImageFile(str(tmp_path / place)).read()
    assert not opened


def test_which_files_belong_to_the_system(tmp_path):
    assert all(map(is_system_file, ["/proc/self/environ", "/dev/../dev/null", "/sys/x"]))
    assert not any(map(is_system_file, ["/dev/shm/photo.png", "/process/x", str(tmp_path), "a\0b"]))


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the file is that of Linux")
def test_a_caption_file_that_leads_to_a_file_of_the_system_is_not_read(tmp_path, rows):
    (tmp_path / "good.txt").symlink_to("/proc/self/environ")
    with pytest.raises(LuminaError, match=r"good\.txt is a file of the system, not a caption file"):
        list(read_source(tmp_path / "good.png"))


def test_the_note_about_a_missing_image_has_the_row_number_of_the_rejects(rows, lumina, tmp_path):
    rows.write_text(
        "".join(json.dumps({"image": name}) + "\n" for name in ("good.png", "good.png", "gone.png"))
    )
    _, _, err = lumina(f"shard {rows} {tmp_path}/data --max-bad-rate 1")
    reject = json.loads((tmp_path / "data" / "rejects.jsonl").read_text())
    assert (reject["row"], "row 2: gone.png: no such image" in err) == (2, True)


@pytest.mark.parametrize("name", ["depth", "masks"])
def test_a_url_that_is_not_ground_truth_is_kept_without_its_password(name, rows, lumina, tmp_path):
    rows.write_text(json.dumps({"image": "good.png", name: "https://me:hunter2hunter2@h/x.png"}) + "\n")
    assert lumina(f"shard {rows} {tmp_path}/data")[0] == 0
    (row,) = read_source(tmp_path / "data")
    assert row[name] == "https://me:***@h/x.png"


@pytest.mark.parametrize("name", ["depth", "masks"])
def test_urls_within_ground_truth_are_kept_without_their_passwords(name, rows, lumina, tmp_path):
    value = ["https://me:hunter2hunter2@h/x.png", {"a": ["s3://h/x?sig=hunter2hunter2"], "b": 7}]
    rows.write_text(json.dumps({"image": "good.png", name: value}) + "\n")
    assert lumina(f"shard {rows} {tmp_path}/data")[0] == 0
    (row,) = read_source(tmp_path / "data")
    assert row[name] == ["https://me:***@h/x.png", {"a": ["s3://h/x?sig=***"], "b": 7}]


def test_a_selection_from_elsewhere_does_not_open_a_client(tmp_path):
    info = {"shards": "jupyter://127.0.0.1/x", "source": "jupyter://127.0.0.1/x", "settings": {}}
    (tmp_path / "select.json").write_text(json.dumps(info))
    with pytest.raises(LuminaError, match=r"select\.json names jupyter://127.0.0.1/x"):
        selected_shards(str(tmp_path))
    (tmp_path / "select.json").write_text(json.dumps(info | {"shards": "s3://bucket/data"}))
    assert selected_shards(str(tmp_path)) == "s3://bucket/data"

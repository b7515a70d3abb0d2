"""Rows of other people never reach the network; what they may name, and who permits more."""

import json
import socket

import fsspec
import pytest

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.allowed import allow_schemes, refuse_location
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


def test_a_selection_from_elsewhere_does_not_open_a_client(tmp_path):
    info = {"shards": "jupyter://127.0.0.1/x", "source": "jupyter://127.0.0.1/x", "settings": {}}
    (tmp_path / "select.json").write_text(json.dumps(info))
    with pytest.raises(LuminaError, match=r"select\.json names jupyter://127.0.0.1/x"):
        selected_shards(str(tmp_path))
    (tmp_path / "select.json").write_text(json.dumps(info | {"shards": "s3://bucket/data"}))
    assert selected_shards(str(tmp_path)) == "s3://bucket/data"

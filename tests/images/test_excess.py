"""Files of very many scans, segments or chunks are refused before they are decoded."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from lumina_cli.core.images.ingest import ingest_image
from lumina_cli.core.images.io import InvalidImage, open_image, read_metadata


def repeat_last_scan(times: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * times + b"\xff\xd9"


@pytest.mark.parametrize("use", [open_image, read_metadata, lambda data: ingest_image(data, "a.jpg")])
def test_a_hundred_thousand_scans_are_refused_at_once(use):
    data = repeat_last_scan(100_000)
    start = time.perf_counter()
    with pytest.raises(InvalidImage, match="more than 1000 scans") as caught:
        use(data)
    assert caught.value.code == "too_large"
    assert time.perf_counter() - start < 2


def test_a_file_on_disk_is_refused_too(tmp_path):
    (tmp_path / "many.jpg").write_bytes(repeat_last_scan(2000))
    with pytest.raises(InvalidImage, match=r"many\.jpg: more than 1000 scans"):
        open_image(tmp_path / "many.jpg")


PLAIN = repeat_last_scan(0)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("data", "excess"),
    [
        (PLAIN[:2] + b"\xff\xfe\0\2" * 3_000_000 + PLAIN[2:], "100000 segments"),
        (PLAIN[:2] + b"\xff" * 10_000_000 + PLAIN[2:], "100000 segments"),
        (PLAIN[:2] + bytes(10_000_000) + PLAIN[2:], "100000 segments"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"abCd") * 1_000_000 + chunk(b"IEND"), "100000 chunks"),
    ],
    ids=["comments", "padding", "stray bytes", "chunks"],
)
@pytest.mark.parametrize("use", [open_image, lambda data: ingest_image(data, "a.jpg")])
def test_millions_of_segments_are_refused_at_once(data, excess, use):
    start = time.perf_counter()
    with pytest.raises(InvalidImage, match=f"more than {excess}; decode and save it again"):
        use(data)
    assert time.perf_counter() - start < 2


def test_progressive_files_are_read():
    assert open_image(repeat_last_scan(0), whole=True).size == (256, 256)
    assert open_image(repeat_last_scan(50)).size == (256, 256)

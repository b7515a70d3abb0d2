"""Headers of tars with impossible sizes, or in chains, are refused in one line at once."""

import io
import tarfile
import tracemalloc

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.tar import RejectedImage, scan_tar

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


def header(kind: bytes, size: int, name: str = "././@LongLink") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str) -> bytes:
    return header(b"0", len(PNG), name) + PNG + bytes(-len(PNG) % 512)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize("size", [1 << 40, 1 << 62, (1 << 20) + 1])
def test_a_header_of_a_terabyte_is_not_read(tmp_path, kind, size):
    path = tmp_path / "a.tar"
    path.write_bytes(member("first.png") + header(kind, size) + bytes(4096))
    tracemalloc.start()
    with pytest.raises(LuminaError, match="bytes for a long name; at most 1,048,576 are read"):
        list(scan_tar(str(path)))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "text"), [(b"L", b"abc\0"), (b"x", b"12 path=abc\n"), (b"g", b"12 path=abc\n")]
)
@pytest.mark.parametrize("count", [9, 5000])
def test_chained_headers_are_refused(tmp_path, kind, text, count):
    path = tmp_path / "a.tar"
    chain = (header(kind, len(text)) + text.ljust(512, b"\0")) * count
    path.write_bytes(member("first.png") + chain + member("last.png") + bytes(1024))
    with pytest.raises(LuminaError, match="more than 8 headers for one member"):
        list(scan_tar(str(path)))


def test_the_samples_before_are_kept_and_the_tar_is_a_reject(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(member("first.png") + member("second.png") + header(b"L", 1 << 40) + bytes(1024))
    rows = list(read_shards(path, lenient=True))
    assert "first" in [row["key"] for row in rows]
    assert isinstance(rows[-1]["image"], RejectedImage)
    assert rows[-1]["image"].code == "bad_tar"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_real_tars_are_read(tmp_path, form):
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name in ("x" * 300 + ".png", "日本" * 90 + ".png", "short.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    assert len(list(scan_tar(str(tmp_path / "a.tar")))) == 3

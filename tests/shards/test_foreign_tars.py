"""Tars of other tools: dots in names, any order of members, repeated names, and members that are not read."""

import io
import json
import tarfile

import pytest
from PIL import Image

from lumina_cli.core.shards.image_ref import find_member
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import open_row_image, read_source


def image(color: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + color, 8), (color, 0, 0)).save(file, format)
    return file.getvalue()


def write_tar(path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def captions_of(rows) -> list[tuple[int, str | None]]:
    """Return (width - 8, which identifies the image, caption) of each row."""
    found = []
    for row in rows:
        texts = row.get("captions", {}).get("en", {})
        found.append((open_row_image(row).width - 8, next(iter(texts.values()), None)))
    return found


NAMES = {
    "dots": ["22.05.png", "22.05.txt", "23.05.png", "23.05.txt"],
    "dots in any order": ["b.1.0.txt", "a.1.0.png", "b.1.0.png", "a.1.0.txt"],
    "dots next to a plain name": ["22.png", "22.txt", "22.05.png", "22.05.txt"],
    "images first": ["000.png", "001.png", "000.txt", "001.txt"],
    "captions first": ["x/000.txt", "x/001.txt", "x/001.png", "x/000.png"],
    "interleaved": ["000.txt", "001.png", "000.png", "001.txt"],
    "capitals": ["UPPER.PNG", "UPPER.TXT", "Mixed.Png", "Mixed.Txt"],
    "other suffixes": ["a.jfif", "a.caption", "b.MPO", "b.txt"],
    "the whole name": ["a.png", "a.png.txt", "b.png", "b.png.txt"],
    "no suffix": ["a", "a.txt", "Photo 22.05", "Photo 22.05.txt", "x/b", "x/b.caption"],
    "folders": ["./v1.0/a.png", "./v1.0/a.txt", "v2.0/a.png", "v2.0/a.txt"],
}


@pytest.mark.parametrize("case", NAMES)
def test_each_image_has_its_caption(tmp_path, case):
    stems = {}
    members = []
    for name in NAMES[case]:
        text = name.lower().endswith((".txt", ".caption"))
        whole = case == "no suffix" and not text
        stem = name if whole else name.rpartition(".")[0].removesuffix(".png")
        number = stems.setdefault(stem, len(stems) + 1)
        format = "JPEG" if name.lower().endswith((".jfif", ".mpo")) else "PNG"
        members.append((name, f"caption {number}".encode() if text else image(number, format)))
    rows = list(read_source(write_tar(tmp_path / "x.tar", members)))
    assert sorted(captions_of(rows)) == [(number, f"caption {number}") for number in stems.values()]
    assert len({row["key"] for row in rows}) == len(rows)


SAME = {
    "in turn": (["png", "txt", "png", "txt"], ["caption 1", "caption 3"]),
    "captions last": (["png", "png", "txt", "txt"], ["caption 2", "caption 3"]),
    "only the second has one": (["png", "png", "txt"], [None, "caption 2"]),
    "only the first has one": (["png", "txt", "png"], ["caption 1", None]),
    "three": (["txt", "png", "txt", "png", "txt", "png"], ["caption 0", "caption 2", "caption 4"]),
    "one before both": (["txt", "png", "png"], ["caption 0", None]),
}


@pytest.mark.parametrize("case", SAME)
def test_a_name_that_occurs_twice_is_two_samples(tmp_path, case):
    suffixes, expected = SAME[case]
    members = [
        (f"same.{suffix}", f"caption {i}".encode() if suffix == "txt" else image(i))
        for i, suffix in enumerate(suffixes)
    ]
    tar = write_tar(tmp_path / "x.tar", members)
    rows = list(read_source(tar))
    images = [i for i, suffix in enumerate(suffixes) if suffix == "png"]
    assert captions_of(rows) == list(zip(images, expected, strict=True))
    keys = ["same", *(f"same-{i}" for i in range(2, len(images) + 1))]
    assert [row["key"] for row in rows] == keys
    for row in rows:  # as text, as a later command reads it
        member = str(row["image"]).rpartition("#")[2]
        assert find_member(tar, member).read() == row["image"].read()


def test_webdataset_fields_do_not_become_samples(tmp_path):
    members = {"0.jpg": image(1, "JPEG"), "0.seg.png": image(2), "0.depth.png": image(3), "0.cls": b"3"}
    members |= {
        "0.json": b'{"caption": "a cup"}',
        "1.left.jpg": image(4, "JPEG"),
        "1.right.jpg": image(5, "JPEG"),
    }
    members |= {"1.txt": b"two views"}
    tar = write_tar(tmp_path / "x.tar", members)
    notes = []
    rows = list(read_source(tar, notify=notes.append))
    assert captions_of(rows) == [(1, "a cup"), (4, "two views"), (5, "two views")]
    assert [row["key"] for row in rows] == ["0", "1.left", "1.right"]
    assert "depth" in rows[0]
    assert notes == [f"{tar}: not read: 1 image that cannot be used (1 further image of a sample)"]


def test_members_that_are_not_read_are_counted(tmp_path, lumina):
    members = {
        "a.jpg": image(1, "JPEG"),
        "a.txt": b"a",
        "b.HEIC": b"x",
        "b.txt": b"b",
        "c.txt": b"c",
        "d.jxl": b"x",
    }
    members |= {"._a.jpg": b"Mac OS X", "clip.mp4": b"x", "README.md": b"x", "a.cls": b"1"}
    tar = write_tar(tmp_path / "x.tar", members)
    code, _, err = lumina(f"shard {tar} {tmp_path}/out")
    assert code == 0
    assert err == (
        f"{tar}: not read: 2 images that cannot be used (1 .heic, 1 .jxl; convert them to JPEG or PNG), "
        "2 caption files without an image (first: b.txt), 1 other file (1 .mp4)\n"
    )
    _, (summary,), _ = lumina(f"shard stats {tmp_path}/out")
    assert (summary["yield"]["input"], summary["yield"]["samples"], summary["yield"]["share"]) == (
        3,
        1,
        0.33333,
    )
    assert summary["yield"]["rejects"] == {"not read: .heic": 1, "not read: .jxl": 1}


def test_images_next_to_tars_are_counted(tmp_path):
    write_tar(tmp_path / "x.tar", {"a.png": image(1)})
    (tmp_path / "b.jpg").write_bytes(image(2, "JPEG"))
    notes = []
    assert len(list(read_source(tmp_path, notify=notes.append))) == 1
    assert notes == [f"{tmp_path}: not read: 1 image that cannot be used (1 .jpg next to shards)"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a\0cat", "contains NUL characters"),
        ("a small cat".encode("utf-16-le"), "looks like UTF-16 without a byte order mark"),
        ("кошка".encode("utf-16-be"), "looks like UTF-16 without a byte order mark"),
    ],
)
def test_a_caption_that_is_not_text_is_a_reject(tmp_path, text, reason):
    tar = write_tar(tmp_path / "x.tar", {"a.png": image(1), "a.txt": text, "b.png": image(2), "b.txt": b"b"})
    bad, good = read_shards(tar, lenient=True)
    assert good["caption"] == "b"
    assert (bad["image"].code, reason in bad["image"].reason) == ("bad_caption", True)


def test_a_json_with_metadata_does_not_hide_the_text(tmp_path):
    members = {
        "a.png": image(1),
        "a.json": json.dumps({"width": 3, "caption": None}).encode(),
        "a.txt": b"a cup",
    }
    (row,) = read_source(write_tar(tmp_path / "x.tar", members))
    assert row["captions"] == {"en": {"short": "a cup"}}


def test_the_order_of_samples_is_that_of_their_images(tmp_path):
    names = [f"{i:03d}" for i in (3, 1, 2)]
    members = [(f"{name}.{suffix}", image(1)) for name in names for suffix in ("txt", "png")]
    assert [entry["key"] for entry in read_index(write_tar(tmp_path / "x.tar", members))] == names

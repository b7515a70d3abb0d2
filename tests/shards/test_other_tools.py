"""Compatibility with other tools in both directions, and the content of the files in a folder of shards."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.ingest import NOTES, ingest_image
from lumina_cli.core.images.io import open_image
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.manifest import manifest_row, read_manifest, read_score_names
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import ShardReader, read_shards
from lumina_cli.core.shards.tar import read_index, tar_header
from lumina_cli.core.sources.source import open_row_image, read_source

CAPTIONS = {"en": {"short": "a cup", "detailed": "a red cup on a table"}, "zh": {"short": "杯子"}}


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


pytestmark = pytest.mark.usefixtures("no_power_cut")


@pytest.fixture
def shards(tmp_path):
    """Three shards of five rows: images of three formats, captions, scores."""
    rows = []
    for i, format in enumerate(["PNG", "JPEG", "WEBP", "PNG", "JPEG"]):
        row = {"key": f"k{i}", "image": encoded(noise(i), format), "captions": CAPTIONS, "n": i}
        rows.append(row | ({"scores": {"clip": i / 8}} if i != 3 else {}) | ({"score": 5} if i == 0 else {}))
    assert len(list(write_shards(rows, tmp_path / "s", 2, source="test"))) == 3
    return tmp_path / "s"


# Our shards in other tools


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_shards(shards):
    import webdataset

    urls = sorted(map(str, shards.glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [row["__key__"] for row in found] == [f"k{i}" for i in range(5)]
    assert found[3]["png"].tobytes() == noise(3).tobytes()
    assert all(row["json"]["captions"] == CAPTIONS for row in found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_shards(tmp_path, monkeypatch, streaming):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"key": f"k{i}", "image": encoded(noise(i)), "captions": CAPTIONS} for i in range(3)]
    list(write_shards(rows, tmp_path / "s", 2))
    found = datasets.load_dataset(
        "webdataset",
        data_files=str(tmp_path / "s" / "*.tar"),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    found = list(found)
    assert [row["__key__"] for row in found] == ["k0", "k1", "k2"]
    assert found[2]["png"].tobytes() == noise(2).tobytes()
    assert found[1]["json"]["captions"]["zh"] == {"short": "杯子"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encode", [None, "png"])
def test_datasets_reads_only_the_first_of_several_formats(tmp_path, monkeypatch, capsys, encode):
    """A limit of datasets: its columns are those of the first samples. A note suggests --encode."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "in").mkdir()
    for i in range(8):
        noise(i).save(tmp_path / "in" / f"{i}.{'png' if i < 6 else 'jpg'}")
    assert (
        run(["shard", str(tmp_path / "in"), str(tmp_path / "s"), *(["--encode", encode] if encode else [])])
        == 0
    )
    assert ("have several formats (jpg, png)" in capsys.readouterr().err) == (encode is None)
    tars, cache = str(tmp_path / "s" / "*.tar"), str(tmp_path / "cache")
    found = list(datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=cache))
    assert [row["png"] is not None for row in found] == [True] * 6 + [encode == "png"] * 2


def test_tar_extracts_shards(shards, tmp_path):
    tar = str(shards / "000000.tar")
    listed = subprocess.run(["tar", "tvf", tar], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in listed.splitlines()] == ["k0.png", "k0.json", "k1.jpg", "k1.json"]
    assert all(line.startswith("-rw-r--r-- 0/0") and "1970" in line for line in listed.splitlines())
    subprocess.run(["tar", "xf", tar, "-C", str(tmp_path)], check=True)
    assert (tmp_path / "k1.jpg").read_bytes() == encoded(noise(1), "JPEG")


@pytest.mark.parametrize(
    ("name", "size"), [("a.jpg", 0), ("k" * 90 + ".json", 8**11 - 1), ("b.depth.png", 511)]
)
def test_headers_equal_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_members_beyond_the_ustar_limits_are_refused():
    with pytest.raises(LuminaError, match="exceeds the USTAR limits"):
        tar_header("a.jpg", 8**11)


# Shards of other tools


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_of_webdataset_are_read(tmp_path):
    import webdataset

    with webdataset.ShardWriter(str(tmp_path / "w-%04d.tar"), maxcount=2, verbose=0) as writer:
        for i in range(3):
            writer.write({"__key__": f"a/{i}", "jpg": noise(i), "json": {"caption": "a cup"}, "cls": i})
    found = list(read_source(tmp_path))
    assert [row["key"] for row in found] == ["a/0", "a/1", "a/2"]
    assert found[1]["captions"] == {"en": {"short": "a cup"}}
    assert open_row_image(found[2]).size == (24, 16)


def tar_of(path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_shards_of_img2dataset_are_read_and_packed(tmp_path):
    """The layout: numbered members .jpg, .json, .txt; a table and statistics next to the tars."""
    folder = tmp_path / "img2dataset"
    folder.mkdir()
    about = {
        "url": "http://x/1.jpg",
        "caption": "a red cup",
        "key": "000000001",
        "status": "success",
        "width": 24,
    }
    members = [("000000000.jpg", encoded(noise(0), "JPEG")), ("000000000.txt", b"two green cups\n")]
    members += [("000000001.jpg", encoded(noise(1), "JPEG")), ("000000001.json", json.dumps(about).encode())]
    members += [("000000001.txt", b"a red cup")]
    tar_of(folder / "00000.tar", members)
    (folder / "00000_stats.json").write_text("{}")
    (folder / "00000.parquet").write_bytes(b"PAR1")
    found = list(read_source(folder))
    assert [row["captions"]["en"]["short"] for row in found] == ["two green cups", "a red cup"]
    assert run(["shard", str(folder), str(tmp_path / "s")]) == 0
    (row, _) = read_shards(tmp_path / "s")
    assert row["image"].read() == members[0][1]
    assert row["origin"].endswith("00000.tar#000000000.jpg")


def test_a_recorded_output_of_img2dataset_is_read(tmp_path, capsys):
    """Written by version 1.47.0: three images of four URLs, with captions, an extra column, hashes."""
    theirs = Path(__file__).parents[1] / "golden" / "img2dataset"
    told = ['a red ramp to the right, "quoted"', "绿色的渐变", "a blue field"]
    assert [row["captions"]["en"]["short"] for row in read_source(theirs)] == told
    assert run(["shard", str(theirs), str(tmp_path / "s"), "--check", "full"]) == 0
    found = list(read_shards(tmp_path / "s"))
    assert [(row["captions"]["en"]["short"], row["rating"]) for row in found] == list(
        zip(told, (0, 0.5, 1), strict=True)
    )
    with tarfile.open(theirs / "00000.tar") as tar:
        for row in found:
            assert row["image"].read() == tar.extractfile(f"{row['key']}.jpg").read()
            assert open_row_image(row).size == (row["width"], row["height"])
    capsys.readouterr()
    assert run(["shard", "cat", str(theirs)]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["captions"]["en"]["short"] for row in lines] == told


def test_tars_of_a_folder_are_read(tmp_path):
    """`tar cf x.tar .` writes names with the prefix ./ and entries for folders."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    noise(0).save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "sub" / "a.txt").write_text("a cup")
    subprocess.run(["tar", "cf", str(tmp_path / "x.tar"), "-C", str(tmp_path / "in"), "."], check=True)
    (row,) = read_source(tmp_path / "x.tar")
    assert (row["key"], row["captions"]) == ("./sub/a", {"en": {"short": "a cup"}})
    assert open_row_image(row).tobytes() == noise(0).tobytes()


# Content of the files


def test_the_manifest_holds_the_indexes(shards):
    batches = list(read_manifest(shards))
    found = [row for batch in batches for row in batch.to_pylist()]
    entries = [(tar.name, entry) for tar in sorted(shards.glob("*.tar")) for entry in read_index(tar)]
    for row, (tar, entry) in zip(found, entries, strict=True):
        assert {name: value for name, value in row.items() if value is not None} == {
            name: value for name, value in manifest_row(tar, entry).items() if value is not None
        }
    assert found[1]["languages"] == ["en", "en", "zh"]
    assert list(zip(found[1]["levels"], found[1]["characters"], strict=True)) == [
        ("short", 5),
        ("detailed", 20),
        ("short", 2),
    ]
    assert [row["score_clip"] for row in found] == [0, 1 / 8, 2 / 8, None, 4 / 8]
    assert [row["score"] for row in found] == [5.0, None, None, None, None]
    assert {row["source"] for row in found} == {"test"}
    assert read_score_names(str(shards)) == ["clip"]
    (batch,) = read_manifest(shards, ["width"])
    assert batch.to_pylist() == [{"width": 24}] * 5


def test_tokens_are_counted_on_request(tmp_path, capsys):
    from tokenizers import Tokenizer

    import lumina_cli

    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red car left of a blue ball")
    assert run(["shard", str(tmp_path), str(tmp_path / "s"), "--tokenizer", "nano"]) == 0
    folder = os.path.dirname(lumina_cli.__file__) + "/assets/nano"
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer/tokenizer.json")
    count = len(tokenizer.encode("a red car left of a blue ball", add_special_tokens=False).ids)
    assert read_index(tmp_path / "s" / "000000.tar")[0]["tokens"] == {"en": {"short": count}}
    (batch,) = read_manifest(tmp_path / "s", ["tokens"])
    assert batch["tokens"].to_pylist() == [[count]]
    assert run(["shard", str(tmp_path), str(tmp_path / "t"), "--tokenizer", folder]) == 0
    assert read_index(tmp_path / "t" / "000000.tar")[0]["tokens"] == {"en": {"short": count}}
    assert run(["shard", str(tmp_path), str(tmp_path / "u"), "--tokenizer", str(tmp_path)]) == 1
    assert "contains no tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["row", "index"])
def test_verify_finds_changed_rows_and_indexes(shards, where):
    path = shards / ("000001.tar" if where == "row" else "000001.index.jsonl")
    data = bytearray(path.read_bytes())
    at = data.index("杯".encode()) if where == "row" else data.index(b'"width": 24') + 10
    data[at] ^= 1
    path.write_bytes(data)
    bad = [row for row in verify_shards(shards) if not row["ok"]]
    assert len(bad) == 1
    assert (
        "k2.json was modified" if where == "row" else "index.jsonl was modified after it was written"
    ) in bad[0]["problem"]


# Conversions of images


def profile_of(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def swapped_profile() -> bytes:
    """An sRGB profile with swapped red and blue primaries."""
    data = bytearray(profile_of("sRGB"))
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"sRGB", b"othe")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_readers_apply_the_icc_profile(format):
    data = encoded(Image.new("RGB", (16, 16), (250, 10, 10)), format, icc_profile=swapped_profile())
    assert ingest_image(data, "x").notes == ("icc",)
    red, _, blue = open_image(data).getpixel((8, 8))
    assert blue > 200 > 60 > red  # red is blue there
    plain = encoded(Image.new("RGB", (16, 16), (250, 10, 10)), format, icc_profile=profile_of("sRGB"))
    assert ingest_image(plain, "x").notes == ()
    assert open_image(plain).getpixel((8, 8))[0] > 240


def test_transparency_survives_an_icc_profile():
    glass = Image.new("RGBA", (4, 4), (250, 10, 10, 0))
    data = encoded(glass, icc_profile=swapped_profile())
    assert ingest_image(data, "x").notes == ("icc", "alpha")
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)


TURNED = Image.Exif()
TURNED[0x0112] = 6


GLASS = Image.merge("RGBA", [*noise(1).split(), Image.new("L", (24, 16), 99)])
VARIETIES = {
    "progressive": encoded(noise(0), "JPEG", progressive=True, quality=97),
    "restart": encoded(noise(0), "JPEG", restart_marker_rows=1),
    "grey.jpg": encoded(noise(0).convert("L"), "JPEG"),
    "large exif": encoded(
        noise(0), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + b"\xff\xd9\xff\xda" * 999
    ),
    "profile in parts": encoded(noise(0), "JPEG", icc_profile=profile_of("sRGB") + bytes(70_000)),
    "turned, with profile": encoded(noise(0), "JPEG", exif=TURNED, icc_profile=swapped_profile()),
    "lossy.webp": encoded(noise(0), "WEBP", quality=50),
    "lossless.webp": encoded(noise(0), "WEBP", lossless=True),
    "glass.webp": encoded(GLASS, "WEBP"),
    "lossless glass.webp": encoded(GLASS, "WEBP", lossless=True),
    "turned.webp": encoded(noise(0), "WEBP", exif=TURNED),
    "one bit.png": encoded(noise(0).convert("1")),
    "grey and alpha.png": encoded(GLASS.convert("LA")),
    "palette.png": encoded(noise(0).quantize(7)),
    "grey, one clear.png": encoded(noise(0).convert("L"), transparency=3),
    "turned.png": encoded(noise(0), exif=TURNED),
    "bmp": encoded(noise(0), "BMP"),
    "tiff, turned": encoded(noise(0), "TIFF", exif=TURNED),
    "avif": encoded(noise(0), "AVIF"),
    "ppm": encoded(noise(0), "PPM"),
}


@pytest.mark.parametrize("name", VARIETIES)
def test_headers_agree_with_decoding(name):
    """A quick check returns the size and notes that Pillow determines by decoding."""
    quick, full = (ingest_image(VARIETIES[name], "x", full=full) for full in (False, True))
    with Image.open(io.BytesIO(VARIETIES[name])) as image:
        transparent = image.has_transparency_data
        image.load()
    assert quick == full
    assert (quick.width, quick.height) == open_image(VARIETIES[name]).size
    assert ("alpha" in quick.notes) == transparent
    assert ("rotated" in quick.notes) == ("turned" in name)


def test_a_quick_check_does_not_decode_common_formats(monkeypatch):
    monkeypatch.setattr("lumina_cli.core.images.ingest.inspect_image", None)
    assert [ingest_image(VARIETIES[name], "x").suffix for name in list(VARIETIES)[:16]] == (
        ["jpg"] * 6 + ["webp"] * 5 + ["png"] * 5
    )
    with pytest.raises(TypeError):
        ingest_image(VARIETIES["bmp"], "x")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "avif"])
def test_images_are_re_encoded_on_request(tmp_path, suffix):
    rows = [{"key": "a", "image": encoded(noise(0), "JPEG", exif=TURNED)}, {"key": "b", "image": noise(1)}]
    list(write_shards(rows, tmp_path / "s", encode=suffix))
    entries = read_index(tmp_path / "s" / "000000.tar")
    assert [entry["image"] for entry in entries] == [f"a.{suffix}", f"b.{suffix}"]
    notes = ["encoded"] if suffix != "png" else []  # pixels in memory are written as PNG in any case
    assert [entry.get("notes", []) for entry in entries] == [["rotated", "encoded"], notes]
    assert (entries[0]["width"], entries[0]["height"]) == (16, 24)
    with Image.open(io.BytesIO(ShardReader(tmp_path / "s")[0]["image"].read())) as image:
        assert image.size == (16, 24)
        assert image.getexif().get(0x0112, 1) == 1


def test_images_without_conversions_keep_their_bytes(tmp_path):
    data = encoded(noise(0), "JPEG")
    list(write_shards([{"key": "a", "image": data}], tmp_path / "s", encode="jpg"))
    assert ShardReader(tmp_path / "s")[0]["image"].read() == data


@pytest.mark.parametrize("encode", [None, "webp"])
def test_pixels_and_their_png_are_the_same_rows(tmp_path, encode):
    """A scene arrives as pixels from this process and as PNG bytes from workers."""
    for name, wrap in {"a": noise, "b": lambda i: encoded(noise(i))}.items():
        rows = [{"key": str(i), "image": wrap(i)} for i in range(3)]
        list(write_shards(rows, tmp_path / name, 2, encode=encode))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1]


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown --encode 'gif'; choose from png, webp, jpg, avif"):
        list(write_shards([], tmp_path, encode="gif"))
    with pytest.raises(UsageError, match="unknown --check 'none'; choose from quick, full"):
        list(write_shards([], tmp_path, check="none"))


def test_both_writers_are_timed_over_the_same_rows(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "data", "--rows", "4", "--size", "64", "--repeats", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["writer"] for row in rows] == ["webdataset", "lumina"]
    assert all(row["rows"] == 4 and row["seconds"] > 0 and row["ratio"] > 0 for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_every_note_has_an_explanation():
    assert all(len(text) > 20 for text in NOTES.values())

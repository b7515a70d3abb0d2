"""Writing and reading shards and sources: round trips, compatibility with other tools, and safety."""

import errno
import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, TooManyRejects, UsageError
from lumina_cli.core.images.depth import decode_depth, decode_masks
from lumina_cli.core.io.jsonl import dump_row
from lumina_cli.core.shards.inspect import describe_shards, verify_shards
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import ShardReader, read_shards
from lumina_cli.core.shards.tar import sanitize_key
from lumina_cli.core.sources import source
from lumina_cli.core.sources.source import open_row_image, read_source


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def rows(count: int) -> list[dict]:
    return [
        {"key": f"k{i}", "image": picture(i), "captions": {"en": {"short": f"row {i}"}}} for i in range(count)
    ]


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several formats with captions, one of them rotated, and other files."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture(0).save(folder / "b.jpg")
    (folder / "b.txt").write_text("a cat\n")
    picture(1).save(folder / "sub" / "a.PNG", "PNG")
    (folder / "sub" / "a.json").write_text('{"caption": "a dog", "score": 0.5}')
    picture(2).save(folder / "c.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3).save(folder / "d e.jpeg", exif=exif)
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def write(source, dest, **settings) -> list[dict]:
    return list(write_shards(source, dest, **settings))


def test_round_trip(tmp_path):
    written = write(rows(5), tmp_path / "s", per_shard=2)
    assert [row["samples"] for row in written] == [2, 2, 1]
    assert sorted(p.name for p in (tmp_path / "s").glob("*.tar")) == [
        "000000.tar",
        "000001.tar",
        "000002.tar",
    ]
    found = list(read_shards(tmp_path / "s"))
    assert [row["key"] for row in found] == [f"k{i}" for i in range(5)]
    for i, row in enumerate(found):
        assert open_row_image(row).tobytes() == picture(i).tobytes()
        assert row["captions"] == {"en": {"short": f"row {i}"}}
        assert (row["width"], row["height"]) == (24, 16)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in "ab":
        write(rows(3), tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1]
    assert set(files[0]) == {"000000.tar", "000000.index.jsonl", "manifest.parquet", "shards.json"}


def test_files_keep_their_bytes(photos, tmp_path):
    write(read_source(photos), tmp_path / "s")
    with tarfile.open(tmp_path / "s" / "000000.tar") as archive:
        names = archive.getnames()
        assert names == [
            "b.jpg",
            "b.json",
            "c.bmp",
            "c.json",
            "d_e.jpg",
            "d_e.json",
            "sub_a.png",
            "sub_a.json",
        ]
        assert archive.extractfile("b.jpg").read() == (photos / "b.jpg").read_bytes()
        turned = json.load(archive.extractfile("d_e.json"))
    assert (turned["width"], turned["height"]) == (16, 24)
    captions = [row.get("captions", {}).get("en", {}).get("short") for row in read_shards(tmp_path / "s")]
    assert captions == ["a cat", None, None, "a dog"]


def test_random_access_and_pickling(tmp_path):
    write(rows(5), tmp_path / "s", per_shard=2)
    reader = pickle.loads(pickle.dumps(ShardReader(tmp_path / "s")))
    assert len(reader) == 5
    assert reader[3]["key"] == "k3"
    assert reader[-1]["image"].open().tobytes() == picture(4).tobytes()
    assert [row["key"] for row in reader] == [f"k{i}" for i in range(5)]


def test_bad_images_are_counted_and_named(tmp_path):
    broken = [
        *rows(3),
        {"key": "x", "image": b"GIF89a"},
        {"key": "y", "image": str(tmp_path / "gone.png")},
        {"key": "z"},
    ]
    with pytest.raises(
        TooManyRejects, match=r"3 of 6 images cannot be used, more than --max-bad-rate allows; .*rejects"
    ):
        write(broken, tmp_path / "s")
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()
    ]
    assert reasons[1:] == [f"{tmp_path / 'gone.png'}: no such image", "the row has no 'image'"]
    assert len(ShardReader(tmp_path / "s")) == 3
    assert write(broken, tmp_path / "t", max_bad_rate=0.5)[0]["samples"] == 3


def test_existing_shards_are_not_overwritten(tmp_path):
    write(rows(3), tmp_path / "s", per_shard=1)
    (tmp_path / "s" / "mine.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"different settings \(per_shard 1, not 1000\); use --force to replace them"
    ):
        write(rows(1), tmp_path / "s")
    write(rows(1), tmp_path / "s", force=True)
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["000000.index.jsonl", "000000.tar", "manifest.parquet", "mine.txt", "shards.json"]


def test_an_interrupted_run_looks_unfinished(tmp_path):
    def interrupted():
        yield from rows(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(interrupted(), tmp_path / "s", per_shard=2)
    names = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert names == ["000000.index.jsonl", "000000.tar", "journal"]
    with pytest.raises(LuminaError, match="is unfinished; resume it with `lumina shard SOURCE"):
        list(read_shards(tmp_path / "s"))
    write(rows(3), tmp_path / "s", per_shard=2)
    assert len(list(read_shards(tmp_path / "s"))) == 3


def use_of(name, folder):
    return {
        "read": lambda: list(read_shards(folder)),
        "reader": lambda: ShardReader(folder),
        "describe": lambda: list(describe_shards(folder)),
        "verify": lambda: list(verify_shards(folder)),
        "source": lambda: list(read_source(folder)),
    }[name]


@pytest.mark.parametrize("name", ["read", "reader", "describe", "verify", "source"])
def test_an_unfinished_folder_is_not_read(tmp_path, name):
    write(rows(3), tmp_path / "s", per_shard=1)
    (tmp_path / "s" / "shards.json").unlink()
    with pytest.raises(
        LuminaError, match=r"s is unfinished; resume it with `lumina shard SOURCE .*s` and the same SOURCE"
    ):
        use_of(name, tmp_path / "s")()
    assert len(ShardReader(tmp_path / "s" / "000001.tar")) == 1  # a tar by its name is whole


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("000001.*", "2 shards, but its shards.json lists 3"),
        ("line", r"000001\.index\.jsonl has 0 bytes, not \d+"),
    ],
)
def test_a_folder_with_a_missing_file_is_not_read(tmp_path, lost, words):
    write(rows(3), tmp_path / "s", per_shard=1)
    for path in (tmp_path / "s").glob(lost):
        path.unlink()
    if lost == "line":
        (tmp_path / "s" / "000001.index.jsonl").write_text("")
    with pytest.raises(LuminaError, match=words):
        ShardReader(tmp_path / "s")


def test_the_index_is_written_before_its_tar(tmp_path):
    def last_of_the_shard():
        yield from rows(1)
        (tmp_path / "s" / "000000.tar").mkdir()  # so that the tar cannot take its name

    with pytest.raises(IsADirectoryError):
        write(last_of_the_shard(), tmp_path / "s")
    assert (tmp_path / "s" / "000000.index.jsonl").is_file()


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(LuminaError, match="nothing to shard"):
        write([], tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b.c", "a_b_c"),
        ("../x", "x"),
        ("__k__", "k__"),
        ("日本", "日本"),
        ("e\u0301té d.’été", "été_d_été"),
        ("हिन्दी 1", "हिन्दी_1"),
        ("\u0301!", "picture"),
        ("\u202eab\ud800\0c", "ab_c"),
        ("猫" * 50, "猫" * 26),
        ("", "picture"),
        ("x" * 200, "x" * 80),
    ],
)
def test_keys_are_safe(name, key):
    taken = {}
    assert [sanitize_key(name, taken) for _ in range(3)] == [key, f"{key}-2", f"{key}-3"]


def test_keys_stay_different_from_numbered_ones():
    taken = {}
    assert [sanitize_key(name, taken) for name in ("a", "a-2", "a", "a-2")] == ["a", "a-2", "a-3", "a-2-2"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_written_shards(tmp_path):
    import webdataset

    write(rows(3), tmp_path / "s")
    data = (
        webdataset.WebDataset(str(tmp_path / "s" / "000000.tar"), shardshuffle=False)
        .decode("pil")
        .to_tuple("png", "json")
    )
    found = list(data)
    assert [row["key"] for _, row in found] == ["k0", "k1", "k2"]
    assert found[1][0].tobytes() == picture(1).tobytes()


@pytest.mark.filterwarnings("ignore")
def test_datasets_reads_written_shards(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(rows(3), tmp_path / "s")
    files = str(tmp_path / "s" / "*.tar")
    data = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data[1]["json"]["captions"] == {"en": {"short": "row 1"}}
    assert data[1]["png"].size == (24, 16)


# Tars of other tools


def foreign(path, members: list[tuple[str, bytes]], links: dict[str, str] = {}) -> None:  # noqa: B006
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_tars_without_an_index_are_scanned(tmp_path):
    members = [
        ("d/a.png", png(0)),
        ("d/a.json", b'{"text": "hi"}'),
        ("d/b.jpg", png(1)),
        ("c.txt", b"no picture"),
    ]
    foreign(tmp_path / "x.tar", members)
    found = list(read_source(tmp_path / "x.tar"))
    assert [(row["key"], row.get("text")) for row in found] == [("d/a", "hi"), ("d/b", None)]
    assert open_row_image(found[1]).tobytes() == picture(1).tobytes()


def test_paths_and_links_in_tars_have_no_effect(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    members = [("../escape.png", png(0)), ("/etc/absolute.png", png(1))]
    foreign(tmp_path / "x.tar", members, {"link.png": str(tmp_path / "secret.png")})
    assert [row["key"] for row in read_shards(tmp_path / "x.tar")] == ["../escape", "/etc/absolute"]
    write(read_shards(tmp_path / "x.tar"), tmp_path / "s")
    assert [row["key"] for row in read_shards(tmp_path / "s")] == ["escape", "etc_absolute"]
    assert not (tmp_path.parent / "escape.png").exists()


@pytest.mark.parametrize("data", [b"no tar at all" * 100, b""])
def test_broken_tars_are_one_line(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(LuminaError, match=r"x\.tar: truncated or not a tar"):
        list(read_shards(tmp_path))


def test_a_truncated_shard_is_detected(tmp_path):
    write(rows(3), tmp_path / "s")
    tar = tmp_path / "s" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(LuminaError, match=r"000000\.tar has 3000 bytes, not 10240"):
        list(read_shards(tmp_path / "s"))
    (tmp_path / "s" / "shards.json").unlink()
    with pytest.raises(LuminaError, match=r"index\.jsonl line \d does not belong to 000000\.tar"):
        list(read_shards(tar))


@pytest.mark.parametrize(
    "entry", [{"offset": -5}, {"length": 10**12}, {"offset": "0"}, {"row": [0]}, {"image": 3}]
)
def test_a_hostile_index_is_refused(tmp_path, entry):
    write(rows(1), tmp_path / "s")
    index = tmp_path / "s" / "000000.index.jsonl"
    index.write_text(dump_row(json.loads(index.read_text()) | entry))
    with pytest.raises(LuminaError, match="does not belong"):
        ShardReader(tmp_path / "s" / "000000.tar")


def test_verify_finds_a_changed_byte(tmp_path):
    write(rows(4), tmp_path / "s", per_shard=2)
    tar = tmp_path / "s" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    found = list(verify_shards(tmp_path / "s"))
    assert [row["ok"] for row in found] == [True, False]
    assert found[1]["problem"].endswith("000001.tar#k2.png was modified after it was written")


# Sources


def test_a_folder_is_read_in_order(photos):
    found = list(read_source(photos))
    assert [row["key"] for row in found] == ["b", "c", "d e", "sub/a"]
    assert found[3]["score"] == 0.5
    assert all(open_row_image(row).mode == "RGB" for row in found)


def test_one_image_is_a_source(photos):
    (row,) = read_source(photos / "b.jpg")
    assert row["captions"] == {"en": {"short": "a cat"}}


def test_rows_find_images_next_to_their_file(photos):
    (photos / "rows.jsonl").write_text('{"image": "b.jpg", "text": "hi"}\n')
    (row,) = read_source(photos / "rows.jsonl")
    assert open_row_image(row).size == (24, 16)
    assert row["captions"] == {"en": {"short": "hi"}}


def test_rows_from_stdin_may_name_images_in_tars(tmp_path, monkeypatch):
    write(rows(2), tmp_path / "s")
    text = "".join(dump_row(row) + "\n" for row in read_shards(tmp_path / "s"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = list(read_source("-"))
    assert open_row_image(found[1]).tobytes() == picture(1).tobytes()
    with pytest.raises(LuminaError, match=r"does not contain the image 'k7\.png'"):
        open_row_image({"image": f"{tmp_path}/s/000000.tar#k7.png"})


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("nowhere", LuminaError, "nowhere: no such source; give a folder"),
        ("nano:many", UsageError, "nano:many: the number of scenes: 'many' is not a whole number"),
        ("nano:0", UsageError, "nano:0: the number of scenes must be at least 1"),
        ("nano:5?sed=3", UsageError, "nano:5.sed=3: no setting 'sed'; did you mean 'seed'?"),
        ("nano:5?seed=x", UsageError, "seed: 'x' is not a whole number"),
        ("hf:", UsageError, "requires the name of a data set"),
        (".", LuminaError, "contains no images"),
    ],
)
def test_bad_sources_are_named(source, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        list(read_source(source))


@pytest.mark.filterwarnings("ignore")
def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets

    def unreachable(*args, **settings):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(LuminaError, match=r"hf:a/b cannot be read \(Couldn't reach the Hub at all\)"):
        list(read_source("hf:a/b"))


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_becomes_rows(monkeypatch):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    data = datasets.Dataset.from_dict(
        {"image": [picture(0), picture(1)], "text": ["a", ""], "n": [1, 2]}, features=features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **settings: data.to_iterable_dataset())
    found = list(read_source("hf:a/b?limit=2"))
    assert [(row["key"], row["n"], row.get("captions")) for row in found] == [
        ("a_b-00000000", 1, {"en": {"short": "a"}}),
        ("a_b-00000001", 2, None),
    ]
    assert open_row_image(found[0]).tobytes() == picture(0).tobytes()
    with pytest.raises(UsageError, match="no column 'img'; set image= to one of image, text, n"):
        list(read_source("hf:a/b?image=img"))


@pytest.mark.slow
def test_nano_scenes_are_the_same_alone_and_in_workers(monkeypatch):
    import lumina_cli.core.sources.nano as scenes

    monkeypatch.setattr(scenes, "CHUNK", 2)
    alone = list(read_source("nano:5?seed=3&size=32"))
    assert [row["key"] for row in alone] == [f"nano-3-{i:06d}" for i in range(5)]
    assert set(alone[0]["captions"]) == {"en", "zh", "ja", "ru", "de"}
    assert alone[0]["image"].size == (32, 32)
    jobs = [(3, i, min(i + 2, 5), 32, False, False) for i in range(0, 5, 2)]
    together = list(scenes.in_workers(jobs, 1))
    assert [row["key"] for row in together] == [row["key"] for row in alone]
    for one, other in zip(alone, together, strict=True):
        assert open_row_image(one).tobytes() == open_row_image(other).tobytes()


def test_true_depth_and_masks_come_back(tmp_path):
    from lumina_cli.core.nano.rendering.renderer import render
    from lumina_cli.core.nano.scene import draw_scene

    write(read_source("nano:3?seed=2&size=32&truth=1"), tmp_path / "s")
    copied = (
        json.loads(dump_row(row)) for row in read_shards(tmp_path / "s")
    )  # as `shard cat | shard pack -`
    write(copied, tmp_path / "t")
    (tmp_path / "t" / "000000.index.jsonl").unlink()  # then the tar is scanned
    truth = render([draw_scene(2, i) for i in range(3)], 32)
    for folder in "st":
        for row, picture in zip(ShardReader(tmp_path / folder), truth, strict=True):
            depth, masks = (row[name].read() for name in ("depth", "masks"))
            assert np.abs(decode_depth(depth) - picture.depth).max() <= 0.0005 + 1e-5
            assert (decode_masks(masks, len(picture.masks)) == picture.masks).all()
            assert Image.open(io.BytesIO(depth)).mode == "I;16"
            assert row["image"].open().tobytes() == picture.image.tobytes()
    assert "depth" not in next(read_source("nano:1?size=32"))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_true_depth_and_masks(tmp_path):
    import webdataset

    write(read_source("nano:2?size=32&truth=1"), tmp_path / "s")
    found = list(webdataset.WebDataset(str(tmp_path / "s" / "000000.tar"), shardshuffle=False))
    assert [set(row) & {"png", "json", "depth.png", "masks.png"} for row in found] == [
        {"png", "json", "depth.png", "masks.png"}
    ] * 2
    assert found[1]["masks.png"] == ShardReader(tmp_path / "s")[1]["masks"].read()


def test_a_depth_of_another_type_stays_in_the_row(tmp_path):
    write([{"key": "a", "image": picture(0), "depth": 3, "masks": "none"}], tmp_path / "s")
    (row,) = read_shards(tmp_path / "s")
    assert (row["depth"], row["masks"]) == (3, "none")


# The command


def test_shard_and_describe(photos, tmp_path, capsys):
    assert run(["shard", str(photos), str(tmp_path / "s"), "--per-shard", "3"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["samples"] for line in out.splitlines()] == [3, 1]
    assert err.startswith("images have several formats (bmp, jpg, png)")
    assert "2 of 4 rows have no caption" in err
    assert run(["shard", "cat", str(tmp_path / "s")]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["image"] == f"{tmp_path}/s/000000.tar#b.jpg"
    assert run(["shard", "info", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["largest"] == "24x16"
    assert run(["shard", "verify", str(tmp_path / "s")]) == 0


def test_too_many_bad_images_exit_with_3(photos, tmp_path, capsys):
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(["shard", str(photos), str(tmp_path / "s")]) == 3
    assert capsys.readouterr().err.startswith("lumina shard: 1 of 5 images cannot be used")
    assert run(["shard", str(photos), str(tmp_path / "t"), "--max-bad-rate", "0.2"]) == 0


def test_shards_never_replace_their_own_source(tmp_path, capsys):
    write(rows(1), tmp_path / "s")
    for place in (tmp_path / "s", tmp_path / "s" / "000000.tar"):
        assert run(["shard", str(place), str(tmp_path / "s"), "--force"]) == 2
    assert len(ShardReader(tmp_path / "s")) == 1


def test_verify_exits_with_1(tmp_path, capsys):
    write(rows(1), tmp_path / "s")
    (tmp_path / "s" / "000000.index.jsonl").unlink()
    assert run(["shard", "verify", str(tmp_path / "s")]) == 1
    assert "does not have an index" in capsys.readouterr().err


def test_sources_lists_what_its_text_names():
    assert all(word in source.__doc__ for word in ("nano:", "hf:", "rows.jsonl", "shards"))


def test_a_full_disk_names_the_shard(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lumina_cli.core.shards.writer.add_member", full)
    with pytest.raises(LuminaError, match=r"^the disk is full: .*000000\.tar$"):
        write(rows(1), tmp_path / "shards")


def test_images_without_captions_are_counted(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["shard", "photos", "out"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "2 of 4 rows have no caption; `lumina train` needs captions: write them with `lumina caption out`"
    )
    assert run(["shard", "photos/b.jpg", "other"]) == 0
    assert capsys.readouterr().err == ""

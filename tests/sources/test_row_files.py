"""Files of rows as a source: formats, archives, columns, and the places where images are searched."""

import io
import json
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.sources.count import count_source
from lumina_cli.core.sources.source import open_row_image, read_source


def image(color: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder with two images in img/."""
    (tmp_path / "data" / "img").mkdir(parents=True)
    for i, name in enumerate("ab"):
        (tmp_path / "data" / "img" / f"{name}.png").write_bytes(image(i))
    return tmp_path / "data"


ROWS = [{"image": "img/a.png", "caption": 'a "red" cup'}, {"image": "img/b.png", "caption": "b\tand c"}]


def write(folder, name: str) -> str:
    """Write ROWS in the format of a name."""
    path = folder / name
    kind = name.lower().rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "csv":
        path.write_text('image,caption\nimg/a.png,"a ""red"" cup"\nimg/b.png,b\tand c\n')
    elif kind == "tsv":
        path.write_text(
            'image\tcaption\nimg/a.png\t"a ""red"" cup"\nimg/b.png\t"b\tand c"\n'.replace("\tand", " and")
        )
    elif "lines" in name:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif "map" in name:
        path.write_text(json.dumps({row["image"]: {"caption": row["caption"]} for row in ROWS}, indent=2))
    elif "wrapped" in name:
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    else:
        path.write_text(json.dumps(ROWS, indent=None if "flat" in name else 1))
    return str(path)


NAMES = ["r.parquet", "r.csv", "R.CSV", "r.tsv", "r.TSV", "r.json", "flat.json", "wrapped.json", "map.json"]
NAMES += ["lines.jsonl", "lines.json", "array.jsonl", "flat.jsonl", "flat.ndjson"]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_tables_and_arrays_are_read(folder, name, lenient):
    source = write(folder, name)
    rows = list(read_source(source, lenient=lenient))
    assert [row["image"] for row in rows] == [f"{folder}/img/a.png", f"{folder}/img/b.png"]
    texts = ['a "red" cup', "b and c" if name.lower().endswith(".tsv") else "b\tand c"]
    assert [row["captions"]["en"]["short"] for row in rows] == texts
    assert [open_row_image(row).getpixel((0, 0))[0] for row in rows] == [0, 1]
    assert count_source(source) == (None if "json" in name and name != "lines.jsonl" else 2)


def test_a_remote_table_is_read(folder):
    filesystem.write_file("memory://tables/img/a.png", image(7))
    filesystem.write_file("memory://tables/r.csv", b"file_name,text\nimg/a.png,a cup\n")
    (row,) = read_source("memory://tables/r.csv", lenient=True)
    assert (row["image"], row["captions"]) == ("memory://tables/img/a.png", {"en": {"short": "a cup"}})


def test_images_in_parquet_as_data_sets_of_the_hub_store_them(tmp_path):
    rows = [
        {"image": {"bytes": image(i), "path": f"n{i}.png"}, "text": f"caption {i}", "extra": None}
        for i in range(3)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    found = list(read_source(tmp_path / "r.parquet"))
    assert [(row["key"], row["captions"]["en"]["short"]) for row in found] == [
        (f"n{i}", f"caption {i}") for i in range(3)
    ]
    assert [open_row_image(row).getpixel((0, 0))[0] for row in found] == [0, 1, 2]
    assert "extra" not in found[0]
    assert count_source(str(tmp_path / "r.parquet")) == 3


@pytest.mark.parametrize("key", ["file_name", "image_path", "filepath", "filename"])
def test_the_key_of_the_image_may_be_another_one(folder, key):
    (folder / "r.jsonl").write_text(json.dumps({key: "img/a.png", "top_caption": "a cup"}) + "\n")
    (row,) = read_source(folder / "r.jsonl")
    assert (row["image"], row["captions"]) == (f"{folder}/img/a.png", {"en": {"short": "a cup"}})


def test_columns_can_be_named(folder):
    (folder / "r.csv").write_text("picture,title,text\nimg/a.png,a cup,x\n")
    (row,) = read_source(f"{folder}/r.csv?image=picture&text=title")
    assert (row["image"], row["captions"]) == (f"{folder}/img/a.png", {"en": {"short": "a cup"}})
    with pytest.raises(LuminaError, match="no column 'photo', only picture, title, text"):
        list(read_source(f"{folder}/r.csv?image=photo"))


def test_several_captions_and_missing_ones(folder):
    rows = [
        {"image": "img/a.png", "caption": ["a cup", "the cup"]},
        {"image": "img/b.png", "captions": None, "text": "b"},
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [row["captions"] for row in read_source(folder / "r.jsonl")]
    assert found == [{"en": {"short": "a cup", "short_2": "the cup"}}, {"en": {"short": "b"}}]


def test_semicolons_and_files_of_windows(folder):
    (folder / "s.csv").write_text("image;caption\nimg/a.png;a cup, red\n")
    (folder / "u.csv").write_bytes("image,caption\r\nimg\\b.png,чашка\r\n".encode("utf-16"))
    assert [row["caption"] for row in read_source(folder / "s.csv")] == ["a cup, red"]
    (row,) = read_source(folder / "u.csv")
    assert (row["image"], row["caption"]) == (f"{folder}/img/b.png", "чашка")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet"])
def test_one_bad_row_is_one_reject(folder, name):
    texts = {
        "csv": "image,caption\nimg/a.png,a,b\nimg/b.png,b\n",
        "tsv": "image\tcaption\nimg/a.png\nimg/b.png\tb\n",
        "json": '[3, {"image": "img/b.png"}]',
        "jsonl": '{"image": \n{"image": "img/b.png"}\n',
    }
    kind = name.rpartition(".")[2]
    if kind == "parquet":
        rows = [{"image": None, "caption": "a"}, {"image": "img/b.png", "caption": "b"}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text(texts[kind])
    bad, good = read_source(folder / name, lenient=True)
    assert good["image"] == f"{folder}/img/b.png"
    assert (bad["image"].code, bad["image"].reason.startswith(f"{folder}/{name} ")) == ("bad_row", True)
    with pytest.raises(LuminaError, match=rf"{name} (line|item|row) \d"):
        list(read_source(folder / name))


# Files that are not rows


def archive(path) -> str:
    if path.name.endswith((".zip", ".cbz")):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.png", image())
    else:
        with tarfile.open(path, f"w:{path.name.rpartition('.')[2].replace('tgz', 'gz')}") as file:
            file.addfile(tarfile.TarInfo("a.png"))
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos.zip", "is a ZIP archive, which is not read; unpack it and name the folder: `unzip "),
        ("comic.cbz", "is a ZIP archive, which is not read; "),
        ("photos.tar.gz", "is compressed with gzip, which is not read; decompress it: `gunzip -k "),
        ("photos.tgz", "is compressed with gzip, which is not read; "),
        ("photos.tar.xz", "is compressed with xz, which is not read; "),
        ("photos.tar.bz2", "is compressed with bzip2, which is not read; "),
    ],
)
def test_archives_are_named_as_what_they_are(tmp_path, lumina, name, message):
    source = archive(tmp_path / name)
    for command in (f"shard {source} {tmp_path}/out", f"caption {source} --engine noop"):
        code, out, err = lumina(command)
        assert (code, out) == (1, [])
        assert f"{source} {message}" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out" / "shards.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsonl.gz", b"\x1f\x8b\x08\0\0", "is compressed with gzip"),
        ("rows.xlsx", b"PK\x03\x04", "is a spreadsheet, which is not read; save it as .csv"),
        ("rows.arrow", b"ARROW1\0\0", "is an Arrow file, which is not read; write its table as Parquet"),
        ("model.bin", b"\1\2\0\0\0", "is binary"),
        ("photo.heic", b"\0\0\0\x18ftypheic", "is HEIC, which is not read; convert it to JPEG or PNG"),
        ("photo.jxl", b"", "has the suffix of an image format, which is not read; convert it to JPEG or PNG"),
        ("r.parquet", b"PAR1 and nothing else", "is not a readable Parquet file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LuminaError) as caught:
        list(read_source(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path}/{name} {message}")


# Where images are


def test_paths_are_relative_to_the_file_and_to_the_working_folder(folder, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "c.png").write_bytes(image(9))
    monkeypatch.chdir(tmp_path / "here")
    rows = [
        {"image": "img/a.png"},
        {"image": "c.png"},
        {"image": f"file://{folder}/img/b.png"},
        {"image": "img\\a.png"},
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (folder / "r.jsonl", "../data/r.jsonl"):
        found = [open_row_image(row).getpixel((0, 0))[0] for row in read_source(source)]
        assert found == [0, 9, 1, 0]


def test_members_of_shards_are_found_next_to_the_file(folder, lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    assert lumina("shard img packed")[0] == 0
    (folder / "r.jsonl").write_text('{"image": "packed/000000.tar#a.png"}\n')
    monkeypatch.chdir(tmp_path)
    (row,) = read_source("data/r.jsonl")
    assert open_row_image(row).size == (8, 8)


def test_the_first_missing_image_is_one_line(folder, lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = [{"image": "img/a.png"}, {"image": "img/c.png"}, {"image": "/nowhere/d.png"}, {"image": "e.png"}]
    (folder / "r.jsonl").write_text("".join(json.dumps(row | {"caption": "x"}) + "\n" for row in rows))
    reason = "img/c.png: no such image, neither in data nor in the working folder"
    code, _, err = lumina("shard data/r.jsonl out")
    assert code == 3
    assert err.splitlines() == [
        f"row 1: {reason}",
        "lumina shard: 3 of 4 images cannot be used, more than --max-bad-rate allows; out/rejects.jsonl lists the reasons",
    ]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["code"], row["reason"]) for row in rejects[:2]] == [
        ("missing", reason),
        ("missing", "/nowhere/d.png: no such image"),
    ]
    assert f"lumina caption: skipped {reason}" in lumina("caption data/r.jsonl --engine noop")[2].splitlines()


def test_the_first_other_reason_is_in_the_error(folder, lumina):
    (folder / "img" / "a.png").write_bytes(image()[:30])
    code, _, err = lumina(f"shard {folder}/img {folder}/out")
    assert code == 3
    assert f"lists the reasons; the first: {folder}/img/a.png: truncated or not an image" in err


@pytest.mark.parametrize("column", ["caption", "blip_caption", "prompt", "captions_2"])
def test_a_data_set_of_the_hub_may_call_its_captions_otherwise(column):
    from lumina_cli.core.sources.settings import HUB
    from lumina_cli.core.sources.source import _hub_row

    row = _hub_row({"image": {"bytes": image(), "path": None}, column: "a cup", "license": "CC0"}, "k", HUB)
    assert (row["captions"], row["license"]) == ({"en": {"short": "a cup"}}, "CC0")

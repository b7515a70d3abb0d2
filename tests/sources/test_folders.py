"""Folders of images: suffixes and content of files, caption files and tables next to images, and what is left out."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.sources.count import count_source
from lumina_cli.core.sources.source import open_row_image, read_source

HEIC, JXL = b"\0\0\0\x18ftypheic" + bytes(50), b"\xff\x0a" + bytes(50)


def image(color: int = 0, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(file, format)
    return file.getvalue()


def fill(folder, files: dict[str, bytes | str]):
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def captions(source, **options) -> dict[str, dict | None]:
    """Return {key: captions in English} of a source."""
    return {row["key"]: row.get("captions", {}).get("en") for row in read_source(source, **options)}


# Which files are images


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jfif", "JPEG"),
        ("A.JFIF", "JPEG"),
        ("a.mpo", "MPO"),
        ("a.jpe", "JPEG"),
        ("0a3f9c", "PNG"),
        ("Photo 22.05", "WEBP"),
        ("cat.jpg?w=300", "JPEG"),
        ("hash", "AVIF"),
        ("a.pgm", "PPM"),
    ],
)
def test_jpegs_by_any_name_and_files_without_suffix_are_read(tmp_path, name, format):
    fill(tmp_path, {name: image(9, format), "other.txt": "not an image"})
    (row,) = read_source(tmp_path)
    assert open_row_image(row).size == (8, 8)
    assert count_source(str(tmp_path)) == 1
    assert len(list(read_source(tmp_path / name))) == 1


def test_files_that_are_not_read_are_counted_in_one_note(tmp_path, lumina):
    kinds = {"a.jpg": image(1, "JPEG"), "b.heic": HEIC, "c.HEIC": HEIC, "d.jxl": JXL, "e": HEIC, "f.mp4": "x"}
    kinds |= {"g": "text", "h.txt": "no image", "README.md": "x", ".hidden.jpg": image(), "a.txt": "a cup"}
    fill(tmp_path / "in", kinds)
    code, _, err = lumina(f"shard {tmp_path}/in {tmp_path}/out")
    note = (
        f"{tmp_path}/in: not read: 4 images that cannot be used (2 .heic, 1 .jxl, 1 HEIC; convert them to JPEG "
        "or PNG), 1 caption file without an image (first: h.txt), 2 other files (1 .mp4, 1 without suffix)\n"
    )
    assert (code, err) == (0, note)
    _, (summary,), _ = lumina(f"shard stats {tmp_path}/out")
    assert (summary["yield"]["input"], summary["yield"]["samples"]) == (5, 1)
    assert lumina(f"caption {tmp_path}/in --engine noop")[2].startswith(f"lumina caption: {note}")


def test_a_folder_without_images_names_what_it_has(tmp_path):
    fill(tmp_path, {"a.heic": HEIC, "data/0000.tar": "x", "data/train.parquet": "x"})
    with pytest.raises(
        LuminaError,
        match=r"1 image that .*\(1 \.heic; .* 2 other files \(1 \.tar, 1 \.parquet\); train\.parquet may",
    ):
        list(read_source(tmp_path))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEIC, "is HEIC, which is not read; convert it to JPEG or PNG"),
        (JXL, "is JPEG XL, which is not read; convert it to JPEG or PNG"),
        (b"<!DOCTYPE html><html>", "is an HTML page, which is not read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_another_file_under_the_name_of_an_image_is_named(tmp_path, data, reason):
    fill(tmp_path, {"a.jpg": data})
    (row,) = read_source(tmp_path)
    with pytest.raises(LuminaError) as caught:
        open_row_image(row)
    assert str(caught.value).startswith(f"{tmp_path}/a.jpg: {reason}")


def test_the_note_on_missing_captions_counts_samples(tmp_path, lumina):
    fill(tmp_path / "in", {"a.png": image(), "bad.png": image()[:40], "c.png": image(), "c.txt": "a cup"})
    code, _, err = lumina(f"shard {tmp_path}/in {tmp_path}/out --max-bad-rate 1")
    assert code == 0
    assert err.startswith("1 of 2 rows have no caption; `lumina train` needs captions")
    fill(tmp_path / "in", {"d.png": image(), "d.txt": "a\0cup", "e.png": image()[:40], "e.txt": "a cup"})
    code, _, err = lumina(f"shard {tmp_path}/in {tmp_path}/new --max-bad-rate 1")
    assert (code, err[:27]) == (0, "1 of 2 rows have no caption")


# Caption files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": "text"}, {"short": "text"}),
        ({"a.TXT": "text"}, {"short": "text"}),
        ({"a.caption": "of kohya"}, {"short": "of kohya"}),
        ({"a.caption": "of kohya", "a.txt": "text"}, {"short": "text"}),
        ({"a.png.txt": "text"}, {"short": "text"}),
        ({"a.json": '{"caption": "of json"}', "a.txt": "text"}, {"short": "of json"}),
        ({"a.json": '{"width": 3}', "a.txt": "text"}, {"short": "text"}),
        ({"a.json": '{"captions": {}, "score": 1}', "a.caption": "text"}, {"short": "text"}),
        ({"a.JSON": '{"caption": ""}', "a.TXT": "text"}, {"short": "text"}),
        ({"a.json": '["a cup", "a cup on the table"]'}, {"short": "a cup", "short_2": "a cup on the table"}),
        ({"a.json": '{"text": ["one cup", "another cup"]}'}, {"short": "one cup", "short_2": "another cup"}),
        ({"a.txt": "a cup".encode("utf-16")}, {"short": "a cup"}),
        ({"a.txt": b"\xef\xbb\xbfa cup"}, {"short": "a cup"}),
        ({"a.txt": "a cup\non a table\n"}, {"short": "a cup\non a table"}),
    ],
)
def test_captions_are_found_where_people_have_them(tmp_path, files, expected):
    notes = []
    assert captions(fill(tmp_path, {"a.png": image(), **files}), notify=notes.append) == {"a": expected}
    assert len(notes) == ("a.caption" in files and "a.txt" in files)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"a\0cup", "contains NUL characters; save it as UTF-8 text"),
        (
            "a.txt",
            "a cup".encode("utf-16-le"),
            "looks like UTF-16 without a byte order mark; save it as UTF-8",
        ),
        (
            "a.caption",
            "чашка".encode("utf-16-be"),
            "looks like UTF-16 without a byte order mark; save it as UTF-8",
        ),
        ("a.txt", "tasse à café".encode("latin-1"), "is not UTF-8 text"),
        ("a.json", b'{"caption": "a\\u0000cup"}', "contains NUL characters"),
        ("a.json", b"[1, 2]", "expected a JSON object or a list of captions"),
    ],
)
def test_a_caption_file_that_is_not_text_rejects_its_image(tmp_path, name, data, reason):
    fill(tmp_path, {"a.png": image(), name: data, "b.png": image(), "b.txt": "b"})
    bad, good = read_source(tmp_path, lenient=True)
    assert good["captions"] == {"en": {"short": "b"}}
    assert bad["image"].code == "bad_caption"
    assert reason in bad["image"].reason


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("one", {"short": "a red cup\n\na cup on a table"}),
        ("first", {"short": "a red cup"}),
        ("each", {"short": "a red cup", "short_2": "a cup on a table"}),
    ],
)
def test_lines_are_one_caption_the_first_or_each_one(tmp_path, lumina, lines, expected):
    folder = fill(
        tmp_path / "in",
        {"a.png": image(), "a.txt": "a red cup\r\n\r\na cup on a table\r\n".replace("\r", "")},
    )
    assert captions(f"{folder}?lines={lines}") == {"a": expected}
    assert lumina(f"shard {folder} {tmp_path}/out --lines {lines}")[0] == 0
    assert captions(tmp_path / "out") == {"a": expected}


def test_an_unknown_setting_of_a_folder_is_named(tmp_path, lumina):
    folder = fill(tmp_path / "in", {"a.png": image()})
    assert lumina(f"shard {folder}?lines=all {tmp_path}/out")[2].endswith(
        "lines=all: choose from one, first, each\n"
    )
    with pytest.raises(UsageError, match="no setting 'line'; did you mean 'lines'"):
        read_source(f"{folder}?line=each")


def test_further_captions_are_trained_like_their_level():
    from types import SimpleNamespace

    from lumina_cli.core.dataset.training_data import caption_kinds

    rows = [{"en": {"short": "a", "short_2": "b", "tags": "c"}}]
    settings = SimpleNamespace(langs=None, captions={"short": 0.5})
    assert caption_kinds(rows, settings) == ([("en", "short"), ("en", "short_2")], [0.5, 0.5])


# Tables


TABLES = {
    "jsonl": ("metadata.jsonl", '{"file_name": "a.png", "text": "a cup"}\n{"file_name": "sub/b.png", "text": "b"}\n'),
    "csv": ("metadata.csv", 'file_name,caption\na.png,"a cup"\nsub/b.png,b\n'),
    "any caption column": ("metadata.csv", "blip_caption,file_name\na cup,a.png\nb,sub/b.png\n"),
    "only text column": ("metadata.jsonl", '{"file_name": "a.png", "about": "a cup", "n": 1}\n{"file_name": "sub/b.png", "about": "b"}'),
    "another image column": ("metadata.csv", "image_path,prompt\n./a.png,a cup\nsub\\b.png,b\n"),
    "kohya": ("meta_cap.json", '{"a": {"caption": "a cup"}, "sub/b": {"caption": "b"}}'),
    "kohya, whole paths": ("meta_cap.json", '{"/data/train/a.png": {"caption": "a cup"}, "sub/b.png": {"caption": "b"}}'),
    "kohya, a list": ("meta_cap.json", '[{"image": "a.png", "caption": "a cup"}, {"image": "sub/b.png", "caption": "b"}]'),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_captions_of_tables(tmp_path, case):
    name, text = TABLES[case]
    fill(tmp_path, {"a.png": image(1), "sub/b.png": image(2), "c.png": image(3), name: text})
    notes = []
    found = captions(tmp_path, notify=notes.append)
    assert found == {"a": {"short": "a cup"}, "c": None, "sub/b": {"short": "b"}}
    assert notes == []


def test_nested_splits_and_parquet(tmp_path):
    fill(tmp_path, {f"{split}/{i}.png": image(i) for split in ("train", "test") for i in range(2)})
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n0.png,zero\n1.png,one\n")
    rows = [{"file_name": "0.png", "text": "test zero"}, {"file_name": "1.png", "text": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test" / "metadata.parquet")
    found = {"test/0": "test zero", "test/1": None, "train/0": "zero", "train/1": "one"}
    assert captions(tmp_path) == {key: text and {"short": text} for key, text in found.items()}


def test_captions_and_tags_of_kohya_lists_included(tmp_path):
    table = {
        "a": {"caption": "a cup", "tags": "cup, red"},
        "b": {"caption": ["a cat", "a black cat"]},
        "c": {"tags": ["dog", "wet"]},
    }
    fill(tmp_path, {f"{key}.png": image() for key in "abc"} | {"meta_lat.json": json.dumps(table)})
    assert captions(tmp_path) == {
        "a": {"tags": "cup, red", "short": "a cup"},
        "b": {"short": "a cat", "short_2": "a black cat"},
        "c": {"tags": "dog, wet"},
    }  # fmt: skip


def test_the_file_next_to_an_image_has_priority_and_other_columns_stay(tmp_path):
    table = '{"file_name": "a.png", "text": "of the table", "license": "CC0"}\n'
    fill(tmp_path, {"a.png": image(), "a.txt": "of the file", "metadata.jsonl": table})
    (row,) = read_source(tmp_path)
    assert (row["captions"], row["license"]) == ({"en": {"short": "of the file"}}, "CC0")


def test_the_column_of_the_caption_can_be_named(tmp_path):
    table = '{"file_name": "a.png", "text": "x", "title": "a cup"}\n'
    fill(tmp_path, {"a.png": image(), "metadata.jsonl": table})
    assert captions(f"{tmp_path}?text=title") == {"a": {"short": "a cup"}}
    with pytest.raises(UsageError, match="has no column 'caption', only file_name, text, title"):
        list(read_source(f"{tmp_path}?text=caption"))


def test_rows_of_tables_without_an_image_and_broken_tables_are_counted(tmp_path):
    fill(tmp_path, {"a.png": image(), "metadata.csv": "file_name,text\na.png,a cup\nb.png,b\nc.png,c\na\n"})
    fill(
        tmp_path,
        {"sub/metadata.jsonl": '{"prompt": "no file name"}\n', "sub/a.png": image(), "meta_x.json": "{"},
    )
    notes = []
    assert captions(tmp_path, notify=notes.append) == {"a": {"short": "a cup"}, "sub/a": None}
    assert notes == [
        f"{tmp_path}: not read: 5 other files (2 row of a table without its image, 1 invalid meta_x.json, "
        "1 invalid row of metadata.csv, 1 metadata.jsonl without file names)"
    ]


def test_a_remote_folder_is_read_like_a_local_one():
    files = {"a.png": image(), "a.TXT": b"a", "b": image(1, "JPEG"), "t/c.png": image(), "e.heic": HEIC}
    files |= {"t/metadata.jsonl": b'{"file_name": "c.png", "text": "c"}'}
    for name, data in files.items():
        filesystem.write_file(f"memory://folders/{name}", data)
    notes = []
    found = captions("memory://folders", notify=notes.append)
    assert found == {"a": {"short": "a"}, "b": None, "t/c": {"short": "c"}}
    assert notes == [
        "memory://folders: not read: 1 image that cannot be used (1 .heic; convert them to JPEG or PNG)"
    ]


def test_a_table_behind_a_link_out_of_the_folder_is_not_read(tmp_path):
    fill(tmp_path, {"in/a.png": image(), "secret.jsonl": '{"file_name": "a.png", "text": "a secret"}'})
    (tmp_path / "in" / "metadata.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert captions(tmp_path / "in") == {"a": None}
    assert captions(tmp_path / "in", links=True) == {"a": {"short": "a secret"}}


# Names


@pytest.mark.parametrize("name", ["what? photos", "x?overlay=y", "a?lines=first", "?"])
def test_a_name_with_a_question_mark_can_be_given(tmp_path, lumina, name):
    folder = fill(tmp_path / name, {"a.png": image(), "a.txt": "a cup"})
    assert captions(folder) == {"a": {"short": "a cup"}}
    assert count_source(str(folder)) == 1
    out = tmp_path / f"out {name}"
    assert lumina(f"shard '{folder}' '{out}'")[0] == 0
    assert captions(out) == captions(folder)
    assert (
        lumina(f"shard stats '{out}'")[0]
        == lumina(f"shard select '{out}' '{out}/s' --where 'width > 1'")[0]
        == 0
    )
    assert captions(f"{out}/s") == captions(folder)


def test_caption_files_hidden_by_another_one_are_counted_as_such(tmp_path, lumina):
    kinds = {
        "a.png": image(1),
        "a.txt": "a cup",
        "a.caption": "a mug",
        "b.png": image(2),
        "b.caption": "a pan",
    }
    fill(tmp_path / "in", kinds | {"c.jpg": image(3, "JPEG"), "c.jpg.txt": "x", "c.txt": "a pot"})
    code, _, err = lumina(f"shard {tmp_path}/in {tmp_path}/out")
    assert code == 0
    assert "not read: 2 other files (2 caption file of an image that has another one)" in err
    assert "without an image" not in err
    captions = [row["captions"]["en"]["short"] for row in read_source(tmp_path / "in")]
    assert captions == ["a cup", "a pan", "a pot"]


def test_sidecars_do_not_hide_a_caption_file(tmp_path, lumina):
    fill(tmp_path / "in", {"a.png": image(1), "a.caption": "a mug of my own"})
    words = f"caption {tmp_path}/in --engine noop --levels tags --sidecars"
    assert lumina(words)[0] == 0
    assert not (tmp_path / "in/a.txt").exists()
    assert lumina(f"{words} --replace")[0] == 0
    assert (tmp_path / "in/a.txt").read_text()

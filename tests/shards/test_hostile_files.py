"""Hostile files become the expected rows or rejects, and nothing is written elsewhere."""

import json
import os
from pathlib import Path

import hostile
import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.images.ingest import NOTES, ingest_image
from lumina_cli.core.images.io import InvalidImage, open_image
from lumina_cli.core.shards.image_ref import image_ref
from lumina_cli.core.shards.manifest import read_manifest
from lumina_cli.core.shards.reader import ShardReader
from lumina_cli.core.sources.source import open_row_image

pytestmark = [  # images/io.py ignores them; pytest sets its own filters
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
    pytest.mark.filterwarnings("ignore:Image size"),
]
PARTS = {"photos": hostile.files, "lists/rows.jsonl": hostile.rows, "tars": hostile.tars}
CODES = {
    "truncated", "not_an_image", "too_large", "floating_point", "bad_caption", "captions", "not_a_file", "outside",
    "missing", "web", "scheme", "no_image", "bad_row", "bad_json", "bad_tar",
}  # fmt: skip


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in root.rglob("*") if "out" not in path.relative_to(root).parts[:1])
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


class Packed:
    """The corpus, packed by the command line; `found` and `expected` have the same keys."""

    def __init__(self, root: Path, workers: int):
        self.root, self.expected, self.found, self.codes, self.rejects = root, {}, {}, {}, {}
        for build in PARTS.values():
            self.expected |= build(root)
        before = snapshot(root)
        for source in PARTS:
            dest = root / "out" / source.replace("/", "-")
            words = ["shard", str(root / source), str(dest), "--per-shard", "20", "--workers", str(workers)]
            self.codes[source] = (run(words), run([*words, "--max-bad-rate", "1"]))
            self.collect(source, dest)
        self.untouched = snapshot(root) == before

    def collect(self, source: str, dest: Path) -> None:
        reader = ShardReader(dest)
        for number, row in enumerate(reader):
            _, entry = reader.entry(number)
            image = open_row_image(row)
            assert image.size == (entry["width"], entry["height"]), entry
            self.found[self.name(source, row["origin"], row)] = tuple(entry.get("notes", ()))
        for line in (dest / "rejects.jsonl").read_text().splitlines():
            reject = json.loads(line)
            name = self.name(source, reject["image"], reject)
            self.found[name], self.rejects[name] = reject["code"], reject

    def name(self, source: str, origin: str, row: dict) -> str:
        if source == "photos":
            return origin.removeprefix(f"{self.root}/")
        if source == "tars":
            tar, _, member = (origin or row["key"]).removeprefix(f"{self.root}/tars/").partition("#")
            return f"{tar} {member.rsplit('.', 1)[0]}".strip()
        key = str(row["key"])
        return f"row {int(key.removeprefix('line-')) - 1 if key.startswith('line-') else key.removeprefix('row')}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Pack the corpus in a working directory in which a file made by a shell's `touch x` would be noticed."""
    root = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(os, "fsync", lambda number: None)
        return Packed(root, workers=0)


def test_the_corpus_is_large_and_all_of_it_is_accounted_for(packed):
    assert len(packed.expected) >= 90
    assert packed.found.keys() == packed.expected.keys()


EVERY = [f"photos/{name}" for name in hostile.FILES]


@pytest.mark.parametrize("name", EVERY, ids=[f"file{i}" for i in range(len(EVERY))])
def test_files_become_the_expected_rows_or_rejects(packed, name):
    assert packed.found[name] == packed.expected[name], name


@pytest.mark.parametrize("kind", ["row ", "a.tar ", ".tar", "photos/"])
def test_rows_tars_and_links_become_the_expected_rows_or_rejects(packed, kind):
    names = [name for name in packed.expected if kind in name]
    assert names
    assert {name: packed.found.get(name) for name in names} == {name: packed.expected[name] for name in names}


def test_nothing_is_written_outside_the_output(packed):
    assert packed.untouched
    assert {path.name for path in packed.root.iterdir()} == {"outside", "photos", "lists", "tars", "out"}
    names = {path.name for path in (packed.root / "out").rglob("*") if path.is_file()}
    assert all(
        name.startswith("00000") or name.split(".")[0] in ("manifest", "shards", "rejects") for name in names
    )


def test_rejects_name_each_bad_file_with_a_reason(packed):
    bad = {name for name, outcome in packed.expected.items() if isinstance(outcome, str)}
    assert packed.rejects.keys() == bad
    assert all(reject["reason"] and "\n" not in reject["code"] for reject in packed.rejects.values())
    assert {reject["code"] for reject in packed.rejects.values()} == CODES


def test_too_many_rejects_exit_with_3(packed):
    assert packed.codes == dict.fromkeys(PARTS, (3, 0))


def test_keys_and_members_are_plain(packed):
    for tar in (packed.root / "out").rglob("*.index.jsonl"):
        for line in tar.read_text().splitlines():
            assert json.loads(line)["key"].replace("-", "").replace("_", "").isalnum()
            assert len(json.loads(line)["key"]) <= 85


def test_nothing_of_a_secret_is_in_the_shards(packed):
    for path in (packed.root / "out" / "photos").rglob("*"):
        assert path.is_dir() or b"a secret" not in path.read_bytes()


def test_conversions_are_listed_in_the_manifest(packed):
    notes = {}
    for batch in read_manifest(packed.root / "out" / "photos"):
        notes |= {Path(row["origin"]).name: tuple(row["notes"]) for row in batch.to_pylist()}
    assert notes["exif-turned.jpg"] == ("rotated",)
    assert {note for each in notes.values() for note in each} <= NOTES.keys()


def test_links_are_followed_on_request(packed, tmp_path, capsys):
    words = ["shard", str(packed.root / "photos"), str(tmp_path / "s"), "--max-bad-rate", "1", "--links"]
    assert run(words) == 0
    origins = [Path(row["origin"]).name for row in ShardReader(tmp_path / "s")]
    assert "out.jpg" in origins


def test_a_full_check_finds_damage_that_a_quick_check_misses():
    lying = hostile.png(50, 50, data=bytes(99))  # its checksums are right, its pixels are not there
    assert ingest_image(lying, "x.png").width == 50
    with pytest.raises(InvalidImage, match="truncated"):
        ingest_image(lying, "x.png", full=True)


@pytest.mark.parametrize("name", hostile.DAMAGED)
def test_a_full_check_finds_jpegs_that_pillow_fills_with_grey(name):
    data = hostile.DAMAGED[name]
    assert open_image(data).size == (160, 120)  # grey where nothing is left
    with pytest.raises(InvalidImage, match="damaged") as caught:
        ingest_image(data, "x.jpg", full=True)
    assert caught.value.code == "damaged"
    with pytest.raises(InvalidImage, match=r"x\.jpg: damaged"):  # nor does it become a good PNG
        ingest_image(data, "x.jpg", encode="png")
    with pytest.raises(InvalidImage, match="damaged"):
        open_row_image({"image": data})


@pytest.mark.parametrize("name", [*hostile.LARGE, *hostile.ODD])
def test_a_full_check_accepts_odd_but_complete_jpegs(name):
    data = (hostile.LARGE | hostile.ODD)[name]
    assert ingest_image(data, "x.jpg", full=True).data == data


def test_a_jpeg_that_only_pillow_supports_is_accepted(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Sorry, arithmetic coding is not implemented")

    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    assert ingest_image(hostile.JPEG, "x.jpg", full=True).width == 32


def test_a_damaged_jpeg_is_a_reject_of_the_command(tmp_path, capsys):
    for name in ("jpeg-closed", "progressive-blank"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jpg").write_bytes(hostile.DAMAGED[name])
    (tmp_path / "in" / "good.jpg").write_bytes(hostile.LARGE["jpeg"])
    words = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "0"]
    assert run([*words, "--check", "full"]) == 3
    rejects = [json.loads(each) for each in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(each["key"], each["code"]) for each in rejects] == [
        ("jpeg-closed", "damaged"),
        ("progressive-blank", "damaged"),
    ]
    assert "premature end of data segment" in rejects[0]["reason"]


def test_quick_and_full_checks_agree_on_all_other_files(packed):
    for name, (data, outcome) in hostile.FILES.items():
        try:
            found = ingest_image(data, name, full=True).notes
        except InvalidImage as error:
            found = error.code
        assert found == outcome or outcome in ("bad_caption", "captions"), name


def test_an_unreadable_file_is_invalid(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").write_bytes(hostile.JPEG)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidImage, match="not readable by this user") as caught:
        image_ref(tmp_path / "a.jpg").read()
    assert caught.value.code == "unreadable"

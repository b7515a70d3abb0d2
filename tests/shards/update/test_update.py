"""Updating a finished folder: only shards with added, changed or removed samples are rewritten."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.curation.select import SelectionSettings, select_samples
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import read_shards
from lumina_cli.core.shards.selection import read_samples
from lumina_cli.core.shards.update.plan import UpdatePlan
from lumina_cli.core.sources.source import read_source

LATER = 10**10  # nanoseconds
NAMES = "bdfhjlnprtvx"  # every second letter, so that images can be added anywhere

pytestmark = pytest.mark.usefixtures("no_power_cut")


def add_photo(folder: Path, name: str, caption: str | None = None, seed: int | None = None) -> Path:
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed or sum(map(ord, name))).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.with_suffix(".txt").write_text(caption or f"a picture of {name}")
    return path


def delete_photo(folder: Path, name: str) -> None:
    (folder / f"{name}.png").unlink()
    (folder / f"{name}.txt").unlink()


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photos with captions: three shards of four rows."""
    for name in NAMES:
        add_photo(tmp_path / "photos", name)
    return tmp_path / "photos"


@pytest.fixture
def data(photos, tmp_path, pack) -> Path:
    pack()
    return tmp_path / "data"


@pytest.fixture
def pack(photos, tmp_path, lumina):
    """Pack the photos; return (exit code, rows, stderr)."""

    def run(words: str = "", source: Path | str = photos, dest: Path | str = tmp_path / "data"):
        return lumina(f"shard {source} {dest} --per-shard 4 --workers 0 {words}")

    return run


def samples(data) -> dict[str, tuple[str, str, bytes]]:
    """Return key -> (shard, caption, bytes of the image)."""
    return {
        row["key"]: (Path(row["image"].tar).name, caption_of(row), row["image"].read())
        for row in read_shards(f"{data}?overlay=")
    }


def caption_of(row: dict) -> str:
    return next(iter(row["captions"]["en"].values()))


def files(data: Path) -> dict[str, bytes]:
    return {p.relative_to(data).as_posix(): p.read_bytes() for p in data.rglob("*") if p.is_file()}


def rewritten(data: Path, before: dict[str, int]) -> list[str]:
    return [name for name, inode in inodes(data).items() if before.get(name, inode) != inode]


def inodes(data: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in data.glob("*.tar")}


# --- images and captions that are added or changed


@pytest.mark.parametrize("name", ["a", "g", "z", "sub/b"])
def test_an_image_added_anywhere_grows_the_folder(photos, data, pack, name):
    before, old = samples(data), inodes(data)
    add_photo(photos, name)
    code, rows, err = pack()
    assert code == 0
    assert err == f"{data}: rows added: 1 ({photos}/{name}.png); shards kept: 3, new: 000003\n"
    assert [row.get("added", 0) for row in rows] == [0, 0, 0, 1]
    assert [row.get("kept", False) for row in rows] == [True, True, True, False]
    after = samples(data)
    assert rewritten(data, old) == []
    assert {key: after[key] for key in before} == before
    assert after[name.replace("/", "_")][:2] == ("000003.tar", f"a picture of {name}")
    code, rows, err = pack()
    assert (code, [row["kept"] for row in rows], err) == (0, [True] * 4, "")


def test_new_images_fill_the_last_shard_first(photos, data, pack):
    add_photo(photos, "a")
    pack()
    before = samples(data)
    for name in "cegikm":
        add_photo(photos, name)
    _, _, err = pack()
    assert err.endswith(
        f"c.png, {photos}/e.png, {photos}/g.png, ...); shards kept: 3, rewritten: 000003, new: 000004\n"
    )
    after = samples(data)
    assert {key: after[key] for key in before} == before
    assert [after[key][0] for key in "cegikm"] == ["000003.tar"] * 3 + ["000004.tar"] * 3
    assert all(row["ok"] for row in verify_shards(data))


def test_a_changed_caption_is_replaced_in_its_shard(photos, data, pack):
    before, old = samples(data), inodes(data)
    (photos / "j.txt").write_text("a new caption")
    for path in photos.glob("*.png"):  # the images are copied from the shards
        os.utime(path, ns=(0, 0))
    code, rows, err = pack()
    assert code == 0
    assert err == f"{data}: rows changed: 1 ({photos}/j.png: captions); shards kept: 2, rewritten: 000001\n"
    assert [row.get("changed", 0) for row in rows] == [0, 1, 0]
    assert rewritten(data, old) == ["000001.tar"]
    assert samples(data) == before | {"j": ("000001.tar", "a new caption", before["j"][2])}


def test_a_caption_that_is_added_or_deleted_changes_its_row(photos, data, pack):
    (photos / "b.txt").unlink()
    (photos / "x.txt").write_text("")
    assert "rows changed: 2 (" in pack()[2]
    (photos / "b.txt").write_text("again")
    assert f"rows changed: 1 ({photos}/b.png: captions); shards kept: 2, rewritten: 000000" in pack()[2]


def test_an_image_with_the_same_name_is_replaced(photos, data, pack):
    before = samples(data)
    path = add_photo(photos, "n", "another picture", seed=999)
    at = (data / "000001.tar").stat().st_mtime_ns + LATER
    os.utime(path, ns=(at, at))
    assert f"rows with another image: 1 ({path}); shards kept: 2, rewritten: 000001" in pack()[2]
    assert samples(data) == before | {"n": ("000001.tar", "another picture", path.read_bytes())}


def test_several_changes_at_once_rewrite_only_their_shards(photos, data, pack):
    before, old = samples(data), inodes(data)
    add_photo(photos, "a")
    add_photo(photos, "m")
    (photos / "x.txt").write_text("changed")
    _, rows, err = pack()
    assert err == (
        f"{data}: rows added: 2 ({photos}/a.png, {photos}/m.png); rows changed: 1 ({photos}/x.png: captions); "
        "shards kept: 2, rewritten: 000002, new: 000003\n"
    )
    assert rewritten(data, old) == ["000002.tar"]
    after = samples(data)
    assert {key: after[key] for key in before if key != "x"} == {k: v for k, v in before.items() if k != "x"}
    totals = json.loads((data / "shards.json").read_text())
    assert (totals["samples"], totals["shards"], totals["rows"]) == (14, 4, 14)
    assert sum(row["samples"] for row in rows) == 14


def test_rows_of_a_file_and_in_another_order(photos, data, pack, tmp_path, lumina):
    found = list(read_source(photos))
    file = tmp_path / "rows.jsonl"

    def write(rows):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return pack(source=file, dest=tmp_path / "s")

    write(found)
    before = samples(tmp_path / "s")
    assert write(found[::-1])[2] == ""  # another order alone changes nothing
    changed = [{**found[3], "captions": {"en": {"short": "other"}}}, *found[4:], *found[:3]]
    assert (
        f"rows changed: 1 ({photos}/h.png: captions); shards kept: 2, rewritten: 000000\n"
        in write(changed)[2]
    )
    extra = [{**found[0], "note": 1}, *changed[:9], *changed[10:]]
    assert f"rows changed: 1 ({photos}/b.png: note); " in write(extra)[2]
    assert samples(tmp_path / "s") == before | {"h": (before["h"][0], "other", before["h"][2])}


def test_images_in_memory_and_ground_truth_are_compared(tmp_path):
    def rows(*numbers, truth=b"t"):
        return [
            {"key": f"s-{i}", "image": Image.new("RGB", (8, 8), (i, 0, 0)), "depth": truth + bytes([i])}
            for i in numbers
        ]

    def pack(found):
        told = []
        list(write_shards(found, tmp_path / "s", 2, notify=told.append))
        return told

    pack(rows(1, 3, 5))
    assert pack(rows(1, 3, 5)) == []
    assert pack(rows(1, 2, 3, 5)) == [f"{tmp_path}/s: rows added: 1 (s-2); shards kept: 1, rewritten: 000001"]
    assert pack(rows(1, 2, 3, 5)) == []
    other = rows(1, 2, 3, 5)
    other[2]["image"] = Image.new("RGB", (8, 8), "white")
    assert pack(other) == [
        f"{tmp_path}/s: rows with another image: 1 (s-3); shards kept: 1, rewritten: 000000"
    ]
    other[1]["depth"] = b"other"
    assert pack(other) == [f"{tmp_path}/s: rows changed: 1 (s-2: depth); shards kept: 1, rewritten: 000001"]


@pytest.mark.parametrize("how", ["relative", "slash", "moved"])
def test_another_spelling_of_the_source_is_the_same_source(photos, data, pack, tmp_path, monkeypatch, how):
    before, source = files(data), str(photos)
    if how == "relative":
        monkeypatch.chdir(tmp_path)
        source = "photos"
    elif how == "slash":
        source = f"{photos}/"
    else:
        source = shutil.move(photos, tmp_path / "elsewhere")
    code, rows, err = pack(source=source)
    assert (code, err, [row["kept"] for row in rows]) == (0, "", [True] * 3)
    assert files(data) == before


def test_duplicate_rows_keep_their_keys(photos, tmp_path):
    rows = [{"image": str(photos / "b.png"), "n": n} for n in (1, 2, 3)]

    def pack(found, **settings):
        told = []
        list(write_shards(found, tmp_path / "s", 4, notify=told.append, **settings))
        return told, {row["key"]: row["n"] for row in read_shards(tmp_path / "s")}

    assert pack(rows)[1] == {"b": 1, "b-2": 2, "b-3": 3}
    told, found = pack([rows[2], rows[0]], removed="drop")
    assert found == {"b": 1, "b-3": 3}
    assert len(told) == 1
    assert pack([rows[0], rows[2], {**rows[0], "n": 4}])[1] == {"b": 1, "b-3": 3, "b-2": 4}


def test_a_new_row_never_takes_the_place_of_another_row_of_its_image(photos, tmp_path):
    """Several rows of one image differ in their keys; a new key is a new sample."""
    rows = [{"key": f"{n:03d}", "image": str(photos / "b.png"), "n": n} for n in range(0, 40, 2)]

    def pack(found, **settings):
        told = []
        list(write_shards(found, tmp_path / "s", 4, notify=told.append, **settings))
        held = {row["key"]: (Path(row["image"].tar).name, row["n"]) for row in read_shards(tmp_path / "s")}
        return told, held

    before = pack(rows)[1]
    more = [{**rows[0], "key": f"{n:03d}", "n": n} for n in (39, 1, 5)]
    told, after = pack([more[0], *rows[::-1], *more[1:]])
    assert told == [
        f"{tmp_path}/s: rows added: 3 ({', '.join([str(photos / 'b.png')] * 3)}); shards kept: 5, new: 000005"
    ]
    assert {key: after[key] for key in before} == before
    assert {key: after[key][1] for key in after.keys() - before.keys()} == {"039": 39, "001": 1, "005": 5}
    renamed = [{**row, "key": "other"} if row["n"] == 4 else row for row in [*rows, *more]]
    with pytest.raises(UsageError, match="holds 1 of 23 samples that the input does not have"):
        pack(renamed)
    assert pack(renamed, removed="drop")[1].keys() == after.keys() - {"004"} | {"other"}


# --- removed samples


def test_removed_images_are_named_and_nothing_changes(photos, data, pack):
    before = files(data)
    for name in "bjnx":
        delete_photo(photos, name)
    add_photo(photos, "a")
    for words in ("", "--dry-run"):
        code, _, err = pack(words)
        assert code == 2
        assert err == (
            f"lumina shard: {data} holds 4 of 12 samples that the input does not have ({photos}/b.png, "
            f"{photos}/j.png, {photos}/n.png, ...); use --removed drop to remove them, or --removed keep to "
            "keep them\n"
        )
        assert files(data) == before
    code, _, err = pack("--removed gone")
    assert code == 2
    assert "unknown --removed 'gone'; choose from drop, keep" in err


def test_removed_images_are_dropped_on_request(photos, data, pack):
    before, old = samples(data), inodes(data)
    for name in ("b", "d", "f", "h", "n"):
        delete_photo(photos, name)
    code, rows, err = pack("--removed drop")
    assert code == 0
    assert "rows removed: 5 (" in err
    assert "shards kept: 1, rewritten: 000000 to 000001\n" in err
    assert [(Path(row["shard"]).name, row["samples"]) for row in rows] == [
        ("000000.tar", 0), ("000001.tar", 3), ("000002.tar", 4),
    ]  # fmt: skip
    assert not list(data.glob("000000*"))
    assert samples(data) == {key: value for key, value in before.items() if key not in "bdfhn"}
    assert rewritten(data, old) == ["000001.tar"]
    assert all(row["ok"] for row in verify_shards(data))
    add_photo(photos, "b")  # its place is not used again
    pack()
    assert samples(data)["b"][0] == "000003.tar"


def test_removed_images_are_kept_on_request(photos, data, pack):
    before = samples(data)
    delete_photo(photos, "b")
    add_photo(photos, "c")
    code, _, err = pack("--removed keep")
    assert code == 0
    assert f"rows kept although the input does not have them: 1 ({photos}/b.png); shards kept: 3, new" in err
    assert {key: value for key, value in samples(data).items() if key != "c"} == before


def test_another_source_is_refused_or_added(photos, data, pack, tmp_path):
    for name in "bd":
        add_photo(tmp_path / "other", name, seed=7 + ord(name))
    before = samples(data)
    code, _, err = pack(source=tmp_path / "other")
    assert code == 2
    assert "holds shards of different rows: the input has none of its 12 samples (" in err
    assert samples(data) == before
    assert pack("--removed keep", source=tmp_path / "other")[0] == 0
    held = list(read_shards(data))
    assert [row["key"] for row in held] == [*NAMES, "b", "d"]
    index = [json.loads(line) for line in (data / "000003.index.jsonl").read_text().splitlines()]
    assert [entry["source"] for entry in index] == [str(tmp_path / "other")] * 2


@pytest.mark.parametrize("damage", ["image", "caption file"])
def test_a_sample_whose_file_is_broken_now_is_never_lost_silently(photos, data, pack, damage):
    before, held = files(data), samples(data)
    if damage == "image":
        (photos / "j.png").write_bytes(b"broken")
    else:
        (photos / "j.json").write_text("{")
    code, _, err = pack()
    assert code == 2
    assert "holds 1 samples whose files or rows cannot be used any more (" in err
    assert f"{photos}/j.png: " in err
    assert files(data) == before
    assert pack("--removed keep --max-bad-rate 1")[0] == 0
    assert samples(data) == held
    assert pack("--removed drop --max-bad-rate 1")[0] == 0
    assert samples(data).keys() == held.keys() - {"j"}
    reject = json.loads((data / "rejects.jsonl").read_text())
    assert (reject["row"], reject["image"]) == (4, f"{photos}/j.png")


def test_rejects_keep_their_numbers_and_are_tried_again_when_repaired(photos, tmp_path, pack, lumina):
    (photos / "d.png").write_bytes(b"broken")
    (photos / "n.json").write_text("{")
    pack("--max-bad-rate 1")
    data = tmp_path / "data"
    rejects = [json.loads(line) for line in (data / "rejects.jsonl").read_text().splitlines()]
    assert [(row["row"], row["code"]) for row in rejects] == [(1, "not_an_image"), (6, "bad_caption")]
    add_photo(photos, "a")
    pack("--max-bad-rate 1")
    rejects = [json.loads(line) for line in (data / "rejects.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rejects] == [2, 7]
    (photos / "n.json").unlink()
    assert f"rows added: 1 ({photos}/n.png); shards kept: 3, rewritten: 000003" in pack("--max-bad-rate 1")[2]
    assert samples(data)["n"][0] == "000003.tar"
    delete_photo(photos, "d")
    assert pack("--max-bad-rate 1")[2] == ""
    assert not (data / "rejects.jsonl").exists()


# --- what refers to the shards


def test_overlays_and_selections_stay_valid_or_are_reported(photos, data, pack, tmp_path):
    rows = [{"key": name, "captions": {"en": {"tags": f"tag {name}"}}} for name in NAMES]
    list(apply_rows(str(data), rows, "captions"))
    list(score_shards(str(data), ["sharpness"]))
    select_samples(str(data), str(tmp_path / "best"), SelectionSettings(best=6, by="sharpness"))
    chosen = [row["key"] for row in read_samples(tmp_path / "best")]
    (photos / "x.txt").write_text("changed")
    _, _, err = pack()
    assert (
        f"the overlay captions@0001 has captions for 1 of the changed rows and still replaces theirs; `lumina shard overlay {data} --remove captions` deletes it\n"
        in err
    )
    assert all(row["ok"] for row in verify_shards(data))  # images and keys are the same
    assert [row["key"] for row in read_samples(tmp_path / "best")] == chosen
    add_photo(photos, "a")
    _, _, err = pack()
    assert (
        f"the overlays of {data} (captions, scores) keep the values of unchanged images; compute those of the "
        f"other images with `lumina shard overlay {data} ROWS --name captions --add`, "
        f"`lumina shard score {data} --scores sharpness`\n"
    ) in err
    problems = [row["problem"] for row in verify_shards(data) if not row["ok"]]
    assert ["captions@0001 does not match" in problems[0], "scores@0001 does not match" in problems[1]] == [
        True,
        True,
    ]
    found = {row["key"]: row for row in read_shards(data)}
    assert [name for name in found if "scores" not in found[name]] == ["a"]
    assert [name for name in found if "tags" not in found[name]["captions"]["en"]] == ["a"]
    list(apply_rows(str(data), rows[:1], "captions", add=True))
    found = list(score_shards(str(data), ["sharpness"]))
    assert (sum(row["reused"] for row in found), sum(row["measured"] for row in found)) == (12, 1)
    assert len(list(read_shards(data))) == 13
    assert [row["key"] for row in read_samples(tmp_path / "best")] == chosen
    path = add_photo(photos, chosen[0], seed=5)
    os.utime(path, ns=(2 * 10**18, 2 * 10**18))
    pack()
    with pytest.raises(LuminaError, match=f"has changed: {chosen[0]} is not what .*best selected; rerun"):
        list(read_samples(tmp_path / "best"))


def test_scores_of_captions_follow_changed_rows(photos, data, pack, lumina):
    """The overlay `scores` holds values of the captions in the rows."""
    for name in NAMES:
        row = {"captions": {"en": {"short": name}}, "caption_scores": {"en": {"short": 0.5}}}
        (photos / f"{name}.json").write_text(json.dumps(row))
    pack()
    list(score_shards(str(data), ["caption"]))
    row["caption_scores"]["en"]["short"] = 0.25
    (photos / "x.json").write_text(json.dumps(row))
    pack()
    list(score_shards(str(data), ["caption"]))
    assert [row["scores"]["caption"] for row in read_shards(data)][-2:] == [0.5, 0.25]


# --- interrupted and concurrent runs, workers, other file systems


def changed_folder(photos: Path) -> None:
    """Change something in each shard: an image, a caption, and a removed and two added images."""
    for name in "acm":
        add_photo(photos, name)
    (photos / "j.txt").write_text("changed")
    delete_photo(photos, "x")
    path = add_photo(photos, "d", seed=3)
    os.utime(path, ns=(2 * 10**18, 2 * 10**18))


def test_an_update_that_was_killed_is_resumed_with_the_same_bytes(photos, data, tmp_path, monkeypatch):
    for number in range(3):
        shutil.copytree(data, tmp_path / str(number))
    changed_folder(photos)
    rows = list(read_source(photos))
    settings = {"per_shard": 4, "removed": "drop", "source": str(photos)}
    shutil.copytree(data, tmp_path / "whole")
    list(write_shards(rows, tmp_path / "whole", **settings))
    whole, before, kills = files(tmp_path / "whole"), files(data), 0
    real, write = os.replace, filesystem.write_file
    for step in range(60):
        dest, count = tmp_path / f"step-{step}", iter(range(step))
        shutil.copytree(data, dest)

        def stop(*arguments, count=count, call=real, **more):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return call(*arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", stop)
            try:
                list(write_shards(rows, dest, **settings))
                break
            except KeyboardInterrupt:
                kills += 1
        if (dest / "shards.json").exists():
            assert {name: text for name, text in files(dest).items() if "update/" not in name} == before
        list(write_shards(rows, dest, workers=2 if step == 5 else 0, **settings))
        assert files(dest) == whole, f"step {step}"
    assert kills > 15
    assert write is filesystem.write_file


def test_staged_shards_are_used_again_and_an_update_can_be_given_up(photos, data, tmp_path, monkeypatch):
    before, rows = files(data), list(read_source(photos))
    for name in "acegik":
        add_photo(photos, name)
    found, settings = list(read_source(photos)), {"per_shard": 4, "source": str(photos)}

    def interrupted():
        yield from found[:10]  # the first new shard is full
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_shards(interrupted(), data, **settings))
    staged = (data / "update" / "000003.tar").stat().st_ino
    assert len(list(read_shards(data))) == 12  # readable all the time
    list(write_shards(found, data, **settings))
    assert (data / "000003.tar").stat().st_ino == staged
    with pytest.raises(UsageError, match="6 of 18 samples that the input does not have"):
        list(write_shards(rows, data, **settings))
    assert not (data / "update").exists()
    list(write_shards(rows, data, removed="drop", **settings))
    assert {n: b for n, b in files(data).items() if n.endswith((".tar", "index.jsonl"))} == {
        n: b for n, b in before.items() if n.endswith((".tar", "index.jsonl"))
    }


@pytest.mark.slow
def test_workers_and_object_stores_write_the_same_update(photos, data, tmp_path):
    rows = list(read_source(photos))
    settings = {"per_shard": 4, "source": str(photos)}
    list(write_shards(rows, "memory://update/s", **settings))
    shutil.copytree(data, tmp_path / "parallel")
    changed_folder(photos)
    rows, told = list(read_source(photos)), [[], [], []]
    places = (data, tmp_path / "parallel", "memory://update/s")
    for place, workers, notes in zip(places, (0, 2, 0), told, strict=True):
        list(write_shards(rows, place, workers=workers, removed="drop", notify=notes.append, **settings))
    assert files(data) == files(tmp_path / "parallel")
    assert files(data) == {
        name: filesystem.read_file(f"memory://update/s/{name}")
        for name in filesystem.list_sizes("memory://update/s")
    }
    assert [len(notes) for notes in told] == [1, 1, 1]


def test_two_updates_at_once_are_refused(photos, data, pack):
    add_photo(photos, "a")
    number = lock_folder(str(data))
    code, _, err = pack()
    os.close(number)
    assert code == 1
    assert f"{data} is being written by another process; wait for it, or choose another folder" in err
    assert pack()[0] == 0


def test_shards_are_not_rewritten_while_overlays_are_written(photos, data, pack, lumina):
    add_photo(photos, "a")
    number = lock_folder(str(data), shared=True)  # as `shard score` in another process holds it
    code, _, err = pack()
    assert code == 1
    assert f"{data} is being written by another process" in err
    (data / "overlays" / "captions").mkdir(parents=True)
    other = lock_folder(str(data / "overlays" / "captions"))
    assert lumina(f"shard score {data} --scores sharpness")[0] == 0  # another overlay, at the same time
    assert lumina(f"shard overlay {data} --remove captions@0001")[0] == 2
    os.close(number)
    number = lock_folder(str(data))  # as `shard pack`
    for words in (f"score {data} --scores entropy", f"encode {data} --model nano --size 64"):
        code, _, err = lumina(f"shard {words}")
        assert code == 1
        assert f"{data} is being written by another process" in err
    os.close(number)
    os.close(other)
    assert pack()[0] == 0


def test_a_dry_run_names_what_would_be_rewritten_and_writes_nothing(photos, data, pack, tmp_path):
    assert [row["action"] for row in pack("--dry-run")[1]] == ["keep"] * 3
    changed_folder(photos)
    before = files(data)
    code, rows, err = pack("--dry-run --removed drop")
    assert code == 0
    assert [{**row, "shard": Path(row["shard"]).name} for row in rows] == [
        {"shard": "000000.tar", "action": "rewrite", "changed": 1},
        {"shard": "000001.tar", "action": "rewrite", "changed": 1},
        {"shard": "000002.tar", "action": "rewrite", "removed": 1},
        {"shard": "000003.tar", "action": "write", "added": 3},
    ]
    assert err.startswith(f"dry run: {data}: rows added: 3 (")
    assert files(data) == before
    code, rows, _ = pack("--dry-run", dest=tmp_path / "new")
    assert [(row["action"], row["rows"]) for row in rows] == [("write", 4)] * 3 + [("write", 2)]
    assert not (tmp_path / "new").exists()
    assert [row["action"] for row in pack("--dry-run --force")[1]] == ["write"] * 4
    assert files(data) == before


def test_force_replaces_a_folder_with_a_staged_update(photos, data, pack, tmp_path):
    (data / "update").mkdir()
    (data / "update" / "000009.tar").write_bytes(b"staged")
    (data / "update" / "commit.json").write_text("{}")
    add_photo(photos, "a")
    assert pack("--force")[0] == 0
    pack(dest=tmp_path / "new")
    assert files(data) == files(tmp_path / "new")


def test_a_damaged_shard_is_not_copied(photos, data, pack):
    tar = data / "000001.tar"
    held = bytearray(tar.read_bytes())
    held[700] ^= 1  # in the first image
    tar.write_bytes(held)
    (photos / "l.txt").write_text("changed")
    code, _, err = pack()
    assert code == 1
    assert "checksum mismatch: " in err
    assert "000001.tar#j.png was modified after it was written; use --force to rewrite all shards" in err


def test_rows_in_order_are_matched_without_a_table(photos, data, monkeypatch):
    """So the memory of a run that only appends does not grow with the samples."""
    totals = json.loads((data / "shards.json").read_text())
    add_photo(photos, "z")
    from lumina_cli.core.shards.sample import ShardSettings

    plan = UpdatePlan(str(data), totals, ShardSettings(source=str(photos)))
    assert [edit.number for edit in plan.edits(read_source(photos))] == [3]
    assert plan.samples.table is None

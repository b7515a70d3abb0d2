"""`lumina caption --reuse`, files of runs without rows, and summary messages."""

import json
import sys
import time
import tracemalloc

import pytest
from PIL import Image
from tiny_captioner import run_caption

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.engines import noop
from lumina_cli.core.unicap.reuse import EarlierCaptions


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number:02d}.png")
    (folder / "07.txt").write_text("a caption that lay beside the picture")
    (folder / "bad.png").write_text("no picture")
    return folder


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def grown(lumina, photos, tmp_path, *levels):
    """Caption the folder, then put three more pictures into its midst; return the words and the old file."""
    old = tmp_path / "old.jsonl"
    words = (photos, "--engine", "noop", "--levels", *levels, "--max-bad-rate", 1)
    assert lumina(*words, "--out", old)[0] == 0
    for name in ("00a", "07a", "zz"):
        Image.new("RGB", (20, 20), (0, 9, 0)).save(photos / f"{name}.png")
    return words, old


def test_a_grown_folder_captions_only_new_images(lumina, photos, tmp_path):
    words, old = grown(lumina, photos, tmp_path, "short")
    code, rows, err = lumina(*words, "--out", old)
    assert (code, rows) == (1, [])
    assert err[-1].endswith(f"to keep these captions, rerun with --out NEW --reuse {old}")
    code, (stats,), err = lumina(*words, "--out", tmp_path / "new.jsonl", "--reuse", old)
    assert (code, stats["pictures"], stats["questions"], stats["reused"]) == (0, 23, 3, 19)
    assert stats["kept"] == 1
    assert lumina(*words, "--out", tmp_path / "fresh.jsonl")[0] == 0
    for name in ("{}.jsonl", "{}.jsonl.rejects.jsonl"):
        new, fresh = ((tmp_path / name.format(one)).read_bytes() for one in ("new", "fresh"))
        assert new == fresh
    assert len(rows_in(tmp_path / "new.jsonl")) == 23


def test_only_missing_captions_are_requested(lumina, photos, tmp_path):
    words, old = grown(lumina, photos, tmp_path, "short")
    edited = rows_in(old)
    for row in edited:
        row["captions"]["en"]["short"] = f"an earlier caption of {row['key']}"
        row["captioned_by"] = {"en": {"short": "openai:big"}}
        row["caption_scores"] = {"en": {"short": 0.31, "tags": 0.1}}
    old.write_text("".join(json.dumps(row) + "\n" for row in edited) + '{"image": "torn')
    code, rows, _ = lumina(
        photos, *words[1:3], "--levels", "short,tags", *words[-2:], "--reuse", old, "--replace"
    )
    assert code == 0
    by_key = {row["key"]: row for row in rows if "error" not in row}
    assert len(by_key) == 23
    assert by_key["07"]["captions"]["en"]["short"] == "an earlier caption of 07"
    assert by_key["07"]["captions"]["en"]["tags"] == noop.TAGS["en"]
    assert by_key["07"]["captioned_by"]["en"] == {"short": "openai:big", "tags": "noop"}
    assert by_key["07"]["caption_scores"] == {"en": {"short": 0.31}}
    assert by_key["07a"]["captioned_by"]["en"] == {"short": "noop", "tags": "noop"}
    assert not [name for row in rows for name in row if name.startswith("_")]


def test_preexisting_captions_of_earlier_rows_are_not_reused(lumina, photos, tmp_path):
    words, old = grown(lumina, photos, tmp_path, "tags")
    assert rows_in(old)[7]["captions"]["en"]["short"] == "a caption that lay beside the picture"
    _, rows, _ = lumina(photos, *words[1:3], "--levels", "short", *words[-2:], "--reuse", old, "--replace")
    seventh = next(row for row in rows if row["key"] == "07")
    assert seventh["captions"]["en"] == {"short": noop.TEXTS["en"], "tags": noop.TAGS["en"]}
    _, rows, _ = lumina(photos, *words[1:3], "--levels", "short", *words[-2:], "--reuse", old)
    seventh = next(row for row in rows if row["key"] == "07")
    assert seventh["captions"]["en"]["short"] == "a caption that lay beside the picture"


def scored(photos, tmp_path):
    """A file of rows with two captions each, who wrote them, and how well they fit."""
    both = {"short": "an old one", "medium": "an old one of some more words"}
    row = {"captions": {"en": both}, "captioned_by": {"en": dict.fromkeys(both, "old")}}
    row |= {"caption_scores": {"en": dict.fromkeys(both, 0.9)}}
    rows = [
        {"image": str(photos / f"{number:02d}.png"), "key": f"{number:02d}", **row} for number in range(3)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, both


def test_replaced_captions_lose_their_scores_and_engines(lumina, photos, tmp_path):
    path, both = scored(photos, tmp_path)
    code, rows, _ = lumina(path, "--engine", "noop", "--levels", "short")
    assert (code, len(rows)) == (0, 3)
    for row in rows:
        assert row["captions"]["en"] == {**both, "short": noop.TEXTS["en"]}
        assert row["captioned_by"] == {"en": {"short": "noop", "medium": "old"}}
        assert row["caption_scores"] == {"en": {"medium": 0.9}}
    _, rows, _ = lumina(path, "--engine", "noop", "--levels", "short,medium")
    assert all("caption_scores" not in row for row in rows)
    _, rows, _ = lumina(path, "--engine", "noop", "--levels", "short", "--keep")
    assert [row["caption_scores"]["en"] for row in rows] == [dict.fromkeys(both, 0.9)] * 3


def test_reused_captions_drop_scores_of_replaced_ones(lumina, photos, tmp_path):
    path, both = scored(photos, tmp_path)
    old = tmp_path / "old.jsonl"
    assert lumina(path, "--engine", "noop", "--levels", "short", "--out", old)[0] == 0
    for row in (edited := rows_in(old)):
        row["captions"]["en"] = {"short": "an earlier one", "tags": "an earlier one, too"}
        row["captioned_by"] = {"en": {"short": "noop", "tags": "noop"}}
    old.write_text("".join(json.dumps(row) + "\n" for row in edited))
    code, rows, _ = lumina(path, "--engine", "noop", "--levels", "short,tags", "--reuse", old)
    assert (code, len(rows)) == (0, 3)
    for row in rows:
        assert row["captions"]["en"]["short"] == "an earlier one"
        assert row["caption_scores"] == {"en": {"medium": 0.9}}
        assert row["captioned_by"]["en"] == {"short": "noop", "medium": "old", "tags": "noop"}
    _, rows, _ = lumina(path, "--engine", "noop", "--levels", "short,tags", "--reuse", old, "--keep")
    for row in rows:
        assert row["captions"]["en"] == {**both, "tags": "an earlier one, too"}
        assert row["caption_scores"]["en"] == dict.fromkeys(both, 0.9)
        assert row["captioned_by"]["en"] == {"short": "old", "medium": "old", "tags": "noop"}


def test_a_run_with_reuse_resumes(lumina, photos, tmp_path):
    words, old = grown(lumina, photos, tmp_path, "short")
    words = (
        photos,
        "--engine",
        "noop",
        "--levels",
        "short,tags",
        "--max-bad-rate",
        1,
        "--reuse",
        old,
        "--out",
    )
    assert lumina(*words, tmp_path / "whole.jsonl")[0] == 0
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn.jsonl").write_bytes(b"".join(lines[:11]) + lines[11][:30])
    state = (tmp_path / "whole.jsonl.state.json").read_bytes()
    (tmp_path / "torn.jsonl.state.json").write_bytes(state)
    code, (stats,), _ = lumina(*words, tmp_path / "torn.jsonl")
    assert code == 0
    assert stats["pictures"] < 20
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    code, _, err = lumina(*words[:-3], "--out", tmp_path / "torn.jsonl")
    assert code == 2
    assert f"was started with reuse={old}, but this run has reuse=none" in err[-1]


def test_reuse_of_the_output_or_a_missing_file_is_rejected(lumina, photos, tmp_path):
    out = tmp_path / "a.jsonl"
    words = (photos, "--engine", "noop", "--out", out, "--reuse")
    assert lumina(*words, out)[2] == [
        f"lumina caption: --reuse {out} is the output file; choose another --out"
    ]
    gone = tmp_path / "gone.jsonl"
    assert lumina(*words, gone)[2] == [f"lumina caption: --reuse {gone}: no such file"]


def test_images_in_memory_are_matched_by_key(lumina, tmp_path):
    words = ("nano:5", "--engine", "noop", "--levels", "short")
    assert lumina(*words, "--out", tmp_path / "a.jsonl")[0] == 0
    grew = ("nano:7", *words[1:], "--reuse", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    code, (stats,), _ = lumina(*grew)
    assert (code, stats["pictures"], stats["questions"]) == (0, 7, 2)


@pytest.mark.slow
def test_only_offsets_of_earlier_rows_are_kept_in_memory(tmp_path):
    path, text = tmp_path / "many.jsonl", "a red car left of a blue ball " * 30
    with path.open("w") as file:
        for number in range(20_000):
            row = {"image": f"photos/{number:06d}.jpg", "captions": {"en": {"short": f"{number} {text}"}}}
            file.write(json.dumps(row) + "\n")
    tracemalloc.start()
    earlier = EarlierCaptions(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000 * 16 + 500_000, held
    assert peak < 20_000 * 60 + 1_000_000, peak
    found = earlier.add({"image": "photos/012345.jpg", "n": 1})
    assert found["captions"]["en"]["short"].startswith("12345 a red car")
    assert earlier.add({"image": "photos/gone.jpg"}) == {"image": "photos/gone.jpg"}
    earlier.close()


def test_an_empty_output_file_accepts_new_settings(lumina, photos, tmp_path):
    out = tmp_path / "a.jsonl"
    code, _, err = lumina(photos, "--engine", "transformers", "--model", photos, "--out", out)
    assert (code, out.stat().st_size) == (1, 0), err
    words = (photos, "--engine", "noop", "--levels", "short", "--max-bad-rate", 1, "--out", out)
    assert lumina(*words)[0] == 0
    assert json.loads((tmp_path / "a.jsonl.state.json").read_text())["engine"] == "noop"
    code, _, err = lumina(*words, "--seed", 4)
    assert (code, "was started with seed=0, but this run has seed=4" in err[-1]) == (2, True)


def test_skipped_rows_also_fix_the_settings(lumina, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    words = (tmp_path / "bad.png", "--engine", "noop", "--max-bad-rate", 1, "--out", tmp_path / "a.jsonl")
    assert lumina(*words)[0] == 0
    assert lumina(*words, "--seed", 4)[0] == 2


def test_a_finished_run_is_reported(photos, tmp_path, capsys):
    words = (photos, "--engine", "noop", "--levels", "short", "--out", tmp_path / "a.jsonl")
    assert run_caption(capsys, *words, "--max-bad-rate", 0.5)[0] == 0
    code, _, err = run_caption(capsys, *words, "--max-bad-rate", 0.01)
    assert code == 3
    assert err == [
        "lumina caption: nothing to do: the file has all 21 images, 1 of them unreadable",
        "lumina caption: 1 of 21 images cannot be opened (5%); --max-bad-rate allows 1%",
    ]


def test_a_failed_run_is_not_reported_as_finished(lumina, photos, tmp_path, monkeypatch):
    out = tmp_path / "a.jsonl"
    words = (photos, "--engine", "noop", "--levels", "short", "--max-bad-rate", 1, "--out", out)
    assert lumina(*words)[0] == 0
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:9]))

    def broken(*_):
        raise LuminaError("no such engine today")

    monkeypatch.setattr("lumina_cli.core.unicap.engines.noop.Captioner.__init__", broken)
    assert lumina(*words) == (1, [], ["lumina caption: no such engine today"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
def test_ray_workers_keep_reused_captions(lumina, photos, tmp_path):
    pytest.importorskip("ray")
    words, old = grown(lumina, photos, tmp_path, "short")
    row = rows_in(old)[3]
    row["captions"]["en"]["short"] = "an earlier caption of it"
    old.write_text(json.dumps(row) + "\n")
    code, rows, _ = lumina(*words[:1], "--engine", "ray:noop", *words[3:], "--reuse", old)
    short = {row["key"]: row["captions"]["en"]["short"] for row in rows if "error" not in row}
    assert (code, len(short), short["03"], short["04"]) == (
        0,
        23,
        "an earlier caption of it",
        noop.TEXTS["en"],
    )
    assert not [name for row in rows for name in row if name.startswith("_")]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--model", "nano"), 2, "--model nano: nano is an engine; use --engine nano"),
        (("--engine", "ray", "--model", "noop"), 2, "--model noop: noop is an engine; use --engine noop"),
        (("--model", "qwen"), 1, "qwen: no such folder, and not a hub id (owner/name)"),
    ],
)
def test_an_impossible_model_is_reported_before_loading(lumina, photos, words, code, line):
    start = time.monotonic()
    assert lumina(photos, *words) == (code, [], [f"lumina caption: {line}"])
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_an_unreachable_hub_is_reported_in_one_line(photos, tmp_path):
    import subprocess

    code = (
        "import sys, time\n"
        "time.sleep = lambda seconds: None\n"
        "from lumina_cli.cli.app import main; sys.argv[0] = 'lumina'; main()"
    )
    words = ["caption", str(photos), "--model", "nobody/no-such-model"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "lumina caption: nobody/no-such-model is not on this machine and cannot be downloaded from the hub; pass "
        "--model FOLDER of an image-text-to-text model, or --engine nano or openai; set "
        "HF_HUB_OFFLINE=1 to skip the hub"
    ]


def test_a_comparison_reports_missing_images(photos, tmp_path, capsys):
    names = ("00.png", "gone.png", "01.png", "x.tar#1.png")
    rows = [{"image": str(photos / name), "captions": {"en": {"short": "a red car"}}} for name in names]
    rows.append({"key": "scene", "captions": {"en": {"short": "a red car"}}})
    rows.append({"image": "s3://somewhere/a.png", "captions": {"en": {"short": "a red car"}}})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["eval", "captions", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ["a.jsonl: 2 of 6 images are missing"]
    assert json.loads(out.splitlines()[0])["captions"] == 6

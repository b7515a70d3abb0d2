"""Growing a finished folder of shards: the result equals that of a single run over all rows."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.report.stats import compute_stats
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import ShardReader
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import read_source

COUNT, PER_SHARD = 26, 4


pytestmark = pytest.mark.usefixtures("no_power_cut")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """Rows of image files; every seventh is broken, and one shard contains only broken ones."""
    folder, found = tmp_path_factory.mktemp("photos"), []
    for i in range(COUNT):
        path = folder / f"{i:03d}.png"
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(path)
        if i % 7 == 3 or i // PER_SHARD == 2:
            path.write_bytes(b"no picture")
        row = {"key": f"k{i}", "image": str(path), "captions": {"en": {"short": f"noise {i}"}}}
        found.append(row | {"scores": {f"s{i // 10}": i / 7}})
    return found


def tree(folder) -> dict[str, bytes]:
    place = str(folder)
    if filesystem.is_url(place):
        return {
            name: filesystem.read_file(filesystem.join(place, name)) for name in filesystem.list_sizes(place)
        }
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def write(found: list[dict], dest, told: list | None = None, **settings) -> list[dict]:
    settings = {"per_shard": PER_SHARD, "max_bad_rate": 1.0, "notify": (told or []).append} | settings
    return list(write_shards(found, dest, **settings))


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> dict[str, bytes]:
    dest = tmp_path_factory.mktemp("whole") / "s"
    write(rows, dest)
    return tree(dest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [8, 10, 11, 25])  # whole shards; short ones, of good rows, of bad ones
def test_a_finished_folder_grows(rows, whole, tmp_path, first, workers):
    write(rows[:first], tmp_path / "s")
    kept = {name: (tmp_path / "s" / name).stat().st_ino for name in tree(tmp_path / "s") if "tar" in name}
    told = ["-"]
    made = write(rows, tmp_path / "s", told, workers=workers)
    assert tree(tmp_path / "s") == whole
    assert {path.name for path in (tmp_path / "s").iterdir()} == whole.keys()
    numbers = [int(Path(row["shard"]).stem) for row in made]
    assert [row.get("kept", False) for row in made] == [number < first // PER_SHARD for number in numbers]
    for name, inode in kept.items():
        assert (inode == (tmp_path / "s" / name).stat().st_ino) == (int(name[:6]) < first // PER_SHARD)
    assert len(told) == 2
    assert told[1].startswith(f"{tmp_path}/s: rows added: {COUNT - first} (")
    assert all(row["kept"] for row in write(rows, tmp_path / "s", told))
    assert len(told) == 2


def test_a_finished_folder_grows_in_steps_and_in_memory(rows, whole):
    dest = "memory://growth/s"
    for count in (1, 2, 13, 14, COUNT):
        write(rows[:count], dest)
        one = f"memory://growth/one-{count}"
        write(rows[:count], one)
        assert tree(dest) == tree(one)
    assert tree(dest) == whole


def test_images_in_memory_are_compared_when_a_folder_grows(tmp_path):
    pictures = [{"key": f"k{i}", "image": Image.new("RGB", (8, 8), (i, 0, 0))} for i in range(7)]
    write(pictures[:5], tmp_path / "s")
    write(pictures, tmp_path / "s")
    write(pictures, tmp_path / "t")
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_other_rows_are_refused_and_nothing_changes(rows, tmp_path):
    write(rows[:10], tmp_path / "s")
    before = tree(tmp_path / "s")
    others = [{**row, "image": "other.png", "key": "other"} for row in rows]
    for other, words in [
        (
            rows[:4],
            r"s holds 4 of 7 samples that the input does not have \(.*4.png, .*5.png, .*6.png, ...\); use --rem",
        ),
        (
            rows[1:],
            r"s holds 1 of 7 samples that the input does not have \(.*000.png\); use --removed drop to",
        ),
        (
            others,
            "s holds shards of different rows: the input has none of its 7 samples .*; use --force to rep",
        ),
        ([], "s holds shards of different rows: the input has none of its 7 samples"),
    ]:
        with pytest.raises(UsageError, match=words):
            write(other, tmp_path / "s")
        assert tree(tmp_path / "s") == before
    with pytest.raises(
        UsageError,
        match=r"s holds shards written with different settings \(encode None, not png\); use --force",
    ):
        write(rows, tmp_path / "s", encode="png")
    (tmp_path / "s" / "000000.tar").write_bytes(b"")
    with pytest.raises(LuminaError, match=r"000000.tar has 0 bytes"):
        write(rows, tmp_path / "s")
    assert tree(tmp_path / "s") | {"000000.tar": b""} == before | {"000000.tar": b""}


def in_child(rows: list[dict], dest: Path, step: int) -> None:
    """Grow in a child process that is killed before its step-th file operation."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        left = [step]

        def counted(real):
            def call(*args, **settings):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **settings)

            return call

        os.replace, os.unlink, os.rmdir = map(counted, (os.replace, os.unlink, os.rmdir))
        write(rows, dest)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_growing_survives_a_kill_at_every_step(rows, whole, tmp_path):
    """Before the commit, the folder is as it was; a run that was killed is resumed with the same result."""
    write(rows[:10], tmp_path / "ten")
    ten, before, after = tree(tmp_path / "ten"), 0, 0
    for step in range(200):
        dest = tmp_path / str(step)
        write(rows[:10], dest)
        in_child(rows, dest, step)
        if tree(dest) == whole:
            break
        if {name: data for name, data in tree(dest).items() if not name.startswith("update/")} == ten:
            before += 1
            assert len(ShardReader(dest)) == 7
            if step % 3 == 1 and not (dest / "update" / "commit.json").exists():  # the update is given up
                assert all(row["kept"] for row in write(rows[:10], dest))
                assert tree(dest) == ten
        elif not (dest / "shards.json").exists():
            after += 1
            with pytest.raises(LuminaError, match="unfinished"):
                ShardReader(dest)
            if step % 2:  # a committed update is completed first, for any input
                with pytest.raises(UsageError, match=r"samples that the input does not have"):
                    write(rows[:10], dest)
                assert tree(dest) == whole
        write(rows, dest)
        assert tree(dest) == whole, f"step {step}"
    assert before >= 5
    assert after >= 10


def test_a_pipe_that_ended_early_is_completed_by_the_next_run(rows, tmp_path, monkeypatch, capsys):
    def feed(count: int) -> int:
        lines = "".join(json.dumps(row) + "\n" for row in rows[:count])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run(
            ["shard", "-", str(tmp_path / "s"), "--per-shard", "4", "--max-bad-rate", "1", "--workers", "0"]
        )

    assert feed(10) == 0
    capsys.readouterr()
    assert feed(COUNT) == 0
    out, err = capsys.readouterr()
    assert "s: rows added: 16 (" in err
    assert "; shards kept: 2, new: 000002 to 000006\n" in err
    assert [json.loads(line).get("kept", False) for line in out.splitlines()] == [True, True, *4 * [False]]
    assert feed(9) == 2
    assert "samples that the input does not have (" in capsys.readouterr().err


# --- images that an earlier command rejected


def test_rows_with_an_error_are_rejects(rows, tmp_path, monkeypatch, capsys):
    left = [
        {"key": "gone", "image": "gone.jpg", "error": "gone.jpg: no such image", "code": "missing"},
        {"error": "no picture", "code": "<b>"},
    ]
    lines = [rows[0], left[0], rows[1], {**rows[2], "error": None}, left[1], rows[4]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(row) + "\n" for row in lines)))
    words = ["shard", "-", str(tmp_path / "s"), "--workers", "0", "--max-bad-rate"]
    assert run([*words, "0.3"]) == 3
    err = capsys.readouterr().err
    assert "2 of 6 images cannot be used" in err
    assert "have no caption" not in err
    rejects = [json.loads(line) for line in (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [
        {
            "row": 1,
            "key": "gone",
            "image": "gone.jpg",
            "code": "missing",
            "reason": left[0]["error"],
            "upstream": True,
        },
        {"row": 4, "key": None, "image": None, "code": "upstream", "reason": "no picture", "upstream": True},
    ]
    told = compute_stats(str(tmp_path / "s"))["yield"]
    assert (told["rejects"], told["left_out_before"]) == ({"missing": 1, "upstream": 1}, 2)
    assert [row["key"] for row in ShardReader(tmp_path / "s")] == ["k0", "k1", "k2", "k4"]


def lines_of(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_rejects_of_caption_are_counted(rows, tmp_path, capsys):
    good = [row for row in rows if b"PNG" in Path(row["image"]).read_bytes()[:8]]
    source, dest = lines_of(tmp_path / "rows.jsonl", good[:6]), str(tmp_path / "s")
    words = ["shard", str(source), dest, "--per-shard", "4", "--workers", "0"]
    assert run(words) == 0
    tars = {name: data for name, data in tree(dest).items() if name.startswith("0")}
    left = [
        {"row": 7 * i, "key": f"bad{i}", "image": f"bad{i}.jpg", "reason": f"b{i}: truncated"}
        for i in range(3)
    ]
    beside = lines_of(tmp_path / "rows.jsonl.rejects.jsonl", left[:1])
    with beside.open("a") as file:
        file.write('{"row": 7, "ke')  # torn: caption was killed
    capsys.readouterr()
    assert run(words) == 3  # 1 of 7: the same shards, another yield
    told = f"{beside} lists 1 rejected rows; they are rejects of the shards, too\n"
    assert told in capsys.readouterr().err
    assert {name: data for name, data in tree(dest).items() if name.startswith("0")} == tars
    lines_of(beside, left)
    lines_of(source, good)
    assert run([*words, "--max-bad-rate", "0.5"]) == 0
    assert run(["shard", str(source), str(tmp_path / "t"), *words[3:], "--max-bad-rate", "0.5"]) == 0
    assert tree(tmp_path / "s") == tree(tmp_path / "t")
    totals = json.loads((tmp_path / "s" / "shards.json").read_text())
    assert (totals["rows"], totals["samples"], totals["rejects"]) == (len(good) + 3, len(good), 3)
    rejects = [json.loads(line) for line in (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rejects] == [len(good), len(good) + 1, len(good) + 2]
    assert rejects[2] == {
        "row": len(good) + 2, "key": "bad2", "image": "bad2.jpg", "code": "upstream", "reason": "b2: truncated",
        "upstream": True,
    }  # fmt: skip
    beside.unlink()
    assert run(words) == 0
    assert not (tmp_path / "s" / "rejects.jsonl").exists()
    lines_of(source, good[:6])
    assert run([*words, "--force"]) == 0
    assert {name: data for name, data in tree(dest).items() if name.startswith("0")} == tars


def test_rejected_captions_are_counted_in_the_index(rows, tmp_path):
    refusal = {
        "lang": "en",
        "level": "short",
        "code": "refusal",
        "reason": "refusal: I cannot",
        "text": "I cannot",
    }
    failed = [refusal, {**refusal, "lang": "zh"}, {**refusal, "code": "repeats"}, "?", {"code": 3}]
    write([rows[0] | {"rejected_captions": failed}, rows[1] | {"rejected_captions": []}], tmp_path)
    first, second = read_index(tmp_path / "000000.tar")
    assert first["rejected_captions"] == {"refusal": 2, "repeats": 1}
    assert "rejected_captions" not in second


# --- concurrent writers, and external kills


@pytest.mark.slow
def test_a_second_writer_of_a_folder_is_refused(rows, tmp_path):
    command = [sys.executable, "-m", "lumina_cli", "shard", "-", str(tmp_path / "s"), "--workers", "0"]
    first = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(tmp_path / "s" / "journal" / "settings.json", first)
    second = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert second.returncode == 1
    message = f"lumina shard: {tmp_path}/s is being written by another process; wait for it, or choose another folder\n"
    assert second.stderr.decode() == message
    first.kill()
    first.communicate()
    number = lock_folder(str(tmp_path / "s"))  # free again
    with pytest.raises(LuminaError, match="is being written by another process"):
        write(rows, tmp_path / "s", force=True)
    os.close(number)
    source = lines_of(tmp_path / "rows.jsonl", rows[:6])
    assert run(["shard", str(source), str(tmp_path / "s"), "--force", "--max-bad-rate", "1"]) == 0
    assert not [
        path for path in (tmp_path / "s").iterdir() if path.name.startswith(".") or "lock" in path.name
    ]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Slow images: noise of 600 x 600, decoded and re-encoded; one of them is broken."""
    folder = tmp_path_factory.mktemp("large")
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (600, 600, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:03d}.jpg")
    (folder / "005.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def command(source: Path, dest: Path) -> list[str]:
    words = ["shard", str(source), str(dest), "--per-shard", "3", "--workers", "2", "--encode", "png"]
    return [sys.executable, "-m", "lumina_cli", *words, "--max-bad-rate", "1"]


def halves(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.endswith(".part.tar")]


def stop_inside_a_tar(process: subprocess.Popen, dest: Path, moments: random.Random) -> None:
    """Stop the process group at a random moment while it writes a tar.

    A tar that is finished before the stop arrives does not count: the group continues, with a shorter wait.
    """
    longest = 0.05
    while True:
        while not halves(dest):
            assert process.poll() is None
        time.sleep(moments.uniform(0, longest))
        longest /= 4
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(0.02)  # a running system call ends first
        if halves(dest):
            return
        os.killpg(process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_random_kills_of_the_process_group_do_not_change_the_result(large, tmp_path):
    """SIGKILL for the process group at a random moment of a random tar, for new and growing folders."""
    rows, moments, inside = list(read_source(large)), random.Random(5), 0
    settings = {"per_shard": 3, "max_bad_rate": 1.0, "encode": "png", "source": str(large)}
    list(write_shards(rows, tmp_path / "one", **settings))
    whole = tree(tmp_path / "one")
    for number, kills in enumerate((2, 1, 1)):
        dest, seen = tmp_path / str(number), 0
        if number == 2:  # two shards stay, the third is short
            seen = len(list(write_shards(rows[:7], dest, **settings))) - 1
        for _ in range(kills):
            process = subprocess.Popen(
                command(large, dest),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            notes = "update" if number == 2 else "journal"
            wait_for(dest / notes / f"{moments.randrange(seen, seen + 2):06d}.json", process)
            stop_inside_a_tar(process, dest, moments)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            inside += bool(halves(dest))
            assert (dest / "shards.json").exists() == (number == 2)
            seen = len(list((dest / notes).glob("0*.json")))
        assert 0 < seen < 8
        list(write_shards(rows, dest, **settings))
        assert tree(dest) == whole, f"kill {number}"
    assert inside >= 2, "too few of the kills came while a tar was written"

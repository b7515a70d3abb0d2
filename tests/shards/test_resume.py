"""Resuming killed runs: the result is the same; other rows and settings are refused."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.errors import UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import read_source

COUNT, PER_SHARD = 36, 3


pytestmark = pytest.mark.usefixtures("no_power_cut")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images with captions and scores; every ninth is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:03d}.jpg")
        row = {"captions": {"en": {"short": f"noise {i}"}}, "scores": {f"s{i % 2}": i / 7}}
        (folder / f"{i:03d}.json").write_text(json.dumps(row))
        if i % 9 == 4:
            (folder / f"{i:03d}.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(source, dest, **settings) -> list[dict]:
    rows = source if isinstance(source, list) else read_source(source, lenient=True)
    return list(write_shards(rows, dest, **{"per_shard": PER_SHARD, "max_bad_rate": 1.0} | settings))


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("whole")
    write(photos, dest)
    return dest


def in_child(photos: Path, dest: Path) -> int:
    """Write shards in a forked child, which does not import anything again; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            write(photos, dest)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # none of pytest's own ends
    return child


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_result(photos, whole, tmp_path):
    moments, cut = random.Random(7), 0
    for number in range(20):
        dest = tmp_path / str(number)
        child = in_child(photos, dest)
        wait_until(dest, number % (COUNT // PER_SHARD + 1))  # so many shards are noted, and a moment more
        time.sleep(moments.uniform(0, 0.003))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut += not (dest / "shards.json").exists()
        write(photos, dest)
        assert tree(dest) == tree(whole), f"kill {number}"
        assert sorted(dest.iterdir()) == sorted(dest / path.name for path in whole.iterdir())
    assert cut >= 15, "too few of the kills came before the end"


def wait_until(dest: Path, shards: int) -> None:
    """Wait until the journal of a run has this many shards, or the run has ended."""
    until = time.monotonic() + 60
    while not (dest / "shards.json").exists() and time.monotonic() < until:
        names = os.listdir(dest / "journal") if (dest / "journal").is_dir() else []
        if sum(name.removesuffix(".json").isdecimal() for name in names) >= shards and names:
            return
        time.sleep(0.0003)


def test_a_complete_shard_is_not_rewritten(photos, whole, tmp_path):
    def dying(rows):
        for number, row in enumerate(rows):
            if number == 2 * PER_SHARD + 1:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        list(write_shards(dying(read_source(photos)), tmp_path, PER_SHARD, 1.0))
    inode = (tmp_path / "000000.tar").stat().st_ino
    (tmp_path / f".{'0' * 12}.part.tar").write_bytes(b"half a shard")
    found = write(photos, tmp_path)
    assert [row.get("kept", False) for row in found[:3]] == [True, True, False]
    assert (tmp_path / "000000.tar").stat().st_ino == inode
    assert tree(tmp_path) == tree(whole)


@pytest.mark.parametrize("lost", ["000000.tar", "000001.index.jsonl", "journal/000001.json"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_damaged_shard_is_rewritten(photos, whole, tmp_path, lost, how):
    begun(photos, tmp_path)
    (tmp_path / lost).unlink()
    if how == "empty":
        (tmp_path / lost).touch()
    write(photos, tmp_path)
    assert tree(tmp_path) == tree(whole)


def test_a_finished_folder_stays_as_it_is(photos, whole, capsys):
    before = tree(whole)
    assert all(row["kept"] for row in write(photos, whole))
    with pytest.raises(UsageError, match=r"settings \(per_shard 3, not 5\); use --force to replace them"):
        write(photos, whole, per_shard=5)
    with pytest.raises(UsageError, match=r"holds 1 of 32 samples that the input does not have \(.*035.jpg\)"):
        write(list(read_source(photos))[:-1], whole)
    assert tree(whole) == before


def begun(photos, dest) -> None:
    """Write two shards and stop."""

    def rows():
        yield from list(read_source(photos))[: 2 * PER_SHARD]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_shards(rows(), dest, PER_SHARD, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_shard": 4}, "(per_shard 3, not 4)"),
        ({"check": "full"}, "(check quick, not full)"),
        ({"encode": "png"}, "(encode None, not png)"),
    ],
)
def test_an_unfinished_run_with_other_settings_is_replaced(photos, tmp_path, settings, message):
    """Of another source it is refused: DEST may be a mistake."""
    begun(photos, tmp_path / "s")
    with pytest.raises(UsageError, match=r"holds an unfinished run with different settings .*; use --force"):
        list(write_shards(read_source(photos), tmp_path / "s", **{"per_shard": 3, "source": "x"} | settings))
    told = []
    write(photos, tmp_path / "s", notify=told.append, **settings)
    assert told == [f"{tmp_path}/s: an unfinished run with different settings {message} is replaced"]
    write(photos, tmp_path / "t", **settings)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_an_unfinished_run_over_other_rows_is_completed_with_these_rows(photos, tmp_path):
    rows, told = list(read_source(photos)), []
    swapped = [*rows[:5], rows[6], rows[5], *rows[7:]]
    for number, other in enumerate((swapped, rows[:3], rows[1:])):
        begun(photos, tmp_path / f"{number}")
        write(other, tmp_path / f"{number}", notify=told.append)
        write(other, tmp_path / f"{number}-one")
        assert tree(tmp_path / f"{number}") == tree(tmp_path / f"{number}-one")
    place = f"{tmp_path}/{{}}: {{}} shards of an unfinished run over other rows or files were written again"
    assert told == [place.format(0, 1), place.format(2, 2)]


def test_a_changed_image_of_an_unfinished_run_is_packed_again(tmp_path):
    source, dest = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(7):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(source / f"{i}.png")
    begun(source, dest)
    size = (source / "1.png").stat().st_size
    Image.new("RGB", (8, 8), (99, 0, 0)).save(source / "1.png")
    assert (source / "1.png").stat().st_size == size  # only the date differs
    found = write(source, dest)
    assert [row.get("kept", False) for row in found] == [False, True, False]
    write(source, tmp_path / "one")
    assert tree(dest) == tree(tmp_path / "one")


@pytest.mark.parametrize("left", ["nothing", "settings", "empty settings", "a tar", "a partial tar"])
def test_a_first_try_that_was_aborted_does_not_block_the_next_one(photos, tmp_path, left, lumina):
    """It had another source and other settings, and did not complete a shard."""
    dest = tmp_path / "s"
    (dest / "journal").mkdir(parents=True)
    if left != "nothing":
        text = '{"version": 1, "per_shard": 7, "source": "elsewhere"}' if left != "empty settings" else ""
        (dest / "journal" / "settings.json").write_text(text)
    if left == "a tar":  # killed before its note was written
        (dest / "000000.index.jsonl").write_text("")
        (dest / "000000.tar").write_bytes(bytes(1024))
    if left == "a partial tar":
        (dest / f".{'0a' * 6}.part.tar").write_bytes(bytes(512))
    words = f"--per-shard {PER_SHARD} --max-bad-rate 1 --workers 0"
    code, rows, err = lumina(f"shard {photos} {dest} {words}")
    assert (code, len(rows)) == (0, COUNT // PER_SHARD)
    assert "unfinished" not in err
    lumina(f"shard {photos} {tmp_path / 't'} {words}")
    assert tree(dest) == tree(tmp_path / "t")


def test_an_empty_source_does_not_block_the_folder(photos, tmp_path, lumina):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "rows.jsonl"
    broken.write_text("{}\n")
    for source in (tmp_path / "empty", tmp_path / "none", broken):
        lumina(f"shard {source} {tmp_path / 's'} --per-shard 5")
        if source == broken:
            assert (tmp_path / "s" / "shards.json").exists()  # its row is a reject
    assert lumina(f"shard {photos} {tmp_path / 's'} --per-shard 5 --max-bad-rate 1")[0] == 0


def test_force_that_was_killed_does_not_block_the_next_run(photos, tmp_path, monkeypatch):
    write(photos, tmp_path / "one")
    for step in range(1, 12, 3):
        dest = tmp_path / str(step)
        write(photos, dest)
        count = iter(range(step))

        def killed(folder, names, count=count, real=filesystem.remove):
            for name in names:
                if next(count, None) is None:
                    raise KeyboardInterrupt
                real(folder, [name])

        with monkeypatch.context() as patched:
            patched.setattr(filesystem, "remove", killed)
            with pytest.raises(KeyboardInterrupt):
                write(photos, dest, force=True)
        write(photos, dest)
        assert tree(dest) == tree(tmp_path / "one")


def test_any_number_of_workers_writes_the_same(photos, whole, tmp_path, capsys):
    words = ["shard", str(photos), str(tmp_path / "s"), "--per-shard", str(PER_SHARD), "--workers", "3"]
    assert run([*words, "--max-bad-rate", "1"]) == 0
    names = [name for name in tree(whole) if not name.endswith((".json", ".parquet", ".jsonl"))]
    assert len(names) == COUNT // PER_SHARD
    assert {name: tree(tmp_path / "s")[name] for name in names} == {name: tree(whole)[name] for name in names}


def started(dest: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lumina_cli", "shard", "-", str(dest), "--per-shard", "2", *words]
    heeds = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # in the background of a shell it is ignored
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=heeds,
    )


def feed(process: subprocess.Popen, photos: Path, count: int) -> None:
    process.stdin.write("".join(line(photos, i) for i in range(count)).encode())
    process.stdin.flush()


def line(photos: Path, number: int) -> str:
    return json.dumps({"key": str(number), "image": f"{photos}/{number:03d}.jpg"}) + "\n"


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command(photos, tmp_path, stop, monkeypatch, capsys):
    """Ctrl-C exits with 130, kill -9 at once; neither leaves a process behind or prevents resuming."""
    process = started(tmp_path / "s", "--workers", "2")
    feed(process, photos, 6)
    wait_for(tmp_path / "s" / "journal" / "000001.json")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(stop)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL), error
    until = time.monotonic() + 20
    while any(alive(child) for child in children) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive(child) for child in children)
    ends = {}
    for name in ("s", "t"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line(photos, i) for i in range(9))))
        assert run(["shard", "-", str(tmp_path / name), "--per-shard", "2"]) == 3  # one of nine is broken
        ends[name] = tree(tmp_path / name)
    assert ends["s"] == ends["t"]


def alive(process: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False

"""Temporary files that killed processes left: later writers remove them, but never those of a live process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumina_cli.core.io.atomic import DAY, _swept, atomic_write, partial_name, sweep
from lumina_cli.core.io.filesystem import remove_partial

WRITER = """
import sys
from lumina_cli.core.io.atomic import atomic_write
with atomic_write(sys.argv[1]) as aside:
    {begin}
    print(aside, flush=True)
    sys.stdin.read()
"""


def start(path: Path, begin: str = "aside.write_bytes(b'half')") -> tuple[subprocess.Popen, Path]:
    """Start a process that stops while it writes a file; return it and the temporary file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(begin=begin), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("begin", ["aside.write_bytes(b'half')", "aside.mkdir(); (aside / 'a').touch()"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, begin):
    process, aside = start(tmp_path / "image.png", begin)
    assert aside.exists()
    sweep(tmp_path)
    assert aside.exists(), "its process is alive"
    kill(process)
    with atomic_write(tmp_path / "other.json") as path:
        path.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_files_of_live_processes_and_other_files_are_kept(tmp_path):
    process, aside = start(tmp_path / "image.png")
    own = tmp_path / partial_name(".png")
    names = [own.name, ".part", "a.part", f".{'0' * 31}.part", f".{'g' * 32}.part.png", f".{'0' * 12}.part"]
    for name in names:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.txt") as path:
        path.touch()
    assert {path.name for path in tmp_path.iterdir()} == {*names, aside.name, "a.txt"}
    kill(process)


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    name = partial_name(".tar")
    reused = name[:17] + f"{int(name[17:25], 16) ^ 1:08x}" + name[25:]  # this number, started at another time
    (tmp_path / reused).touch()
    sweep(tmp_path)
    assert not (tmp_path / reused).exists()


def test_files_of_other_machines_are_removed_after_a_day_or_in_a_locked_folder(tmp_path):
    name = partial_name(".tar")
    other = tmp_path / ("." + f"{int(name[1:9], 16) ^ 1:08x}" + name[9:])
    old = tmp_path / f".{'0' * 12}.part.tar"  # named by an earlier version
    other.touch()
    old.touch()
    sweep(tmp_path)
    assert other.exists()
    assert old.exists()
    at = time.time() - DAY - 60
    os.utime(other, (at, at))
    sweep(tmp_path)
    assert not other.exists()
    other.touch()
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_examined_once(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("lumina_cli.core.io.atomic.sweep", found.append)
    for name in "abc":
        with atomic_write(tmp_path / "in" / name) as path:
            path.touch()
    assert found == [tmp_path / "in"]
    _swept.clear()


def leave_partial_files(folders: list[Path]) -> list[Path]:
    """Leave a temporary file of a dead process in each folder."""
    found = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        name = partial_name(".png")
        pid = int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout)
        found.append(folder / f"{name[:9]}{pid:08x}{name[17:]}")
        found[-1].write_bytes(b"half")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_finished_runs_leave_no_partial_files(tmp_path, lumina, again):
    """`again`: the files were left after everything else was written, so the next run writes few files."""
    photos, shards, images = tmp_path / "photos", tmp_path / "shards", tmp_path / "images"
    lumina(f"sample 'a red ball' 'a blue cup' --model nano --steps 2 --seed 1 --size 64 --out {photos}")
    commands = [
        f"caption {photos} --engine noop --out {tmp_path}/captions/rows.jsonl",
        f"shard {photos} {shards} --workers 0",
        f"shard score {shards} --scores sharpness",
        f"shard select {shards} {tmp_path}/best --best 1 --by sharpness",
        f"shard encode {shards} --model nano --size 64",
        f"shard stats {shards} --page {tmp_path}/pages/stats.html",
        f"sample 'a red ball' --model nano --steps 2 --size 64 --out {images} --gallery",
        f"eval geneval --ceiling --per-task 1 --pictures 1 --out {tmp_path}/eval",
    ]
    places = [tmp_path / name for name in ("captions", "shards", "best", "pages", "images", "eval")]
    places += [tmp_path / "eval" / "00000" / "samples", shards / "overlays" / "scores" / "0001"]
    if again:
        for command in commands:
            assert lumina(command)[0] == 0, command
    _swept.clear()
    left = leave_partial_files(places)
    for command in commands:
        code, _, err = lumina(command)
        assert code == 0, err
    assert [path for path in left if path.exists()] == []

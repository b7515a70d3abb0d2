"""Runs of `lumina caption --out` that are killed, repeated, split and refused."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.resumable_file import ResumableFile

# Forks runs of the command line, and kills each after a random time, until 20 were killed.
KILLER = """
import os, random, signal, sys, time
from lumina_cli.cli.app import run
from lumina_cli.core.sources import count, source  # imported before the fork, so that children start fast
from lumina_cli.core.unicap import run as captioning
from lumina_cli.core.unicap.scoring import clip
from lumina_cli.core.unicap.checks.rules import check_caption as check
from lumina_cli.core.unicap.engines import noop

check("a red car", "short", "en")
at_once = noop.Captioner.answer
noop.Captioner.answer = lambda self, questions: time.sleep(0.02) or at_once(self, questions)
random.seed(5)
out = sys.argv[-1]
size = lambda: os.path.getsize(out) if os.path.exists(out) else 0
for kill in range(20):
    before, start = size(), time.monotonic()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run(["caption", *sys.argv[1:]]))
    while kill % 4 and size() == before and time.monotonic() - start < 10:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    print(sum(1 for _ in open(out)) if killed and os.path.exists(out) else -1)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(240):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number:03d}.png")
        if number % 30 == 7:
            (folder / f"{number:03d}-bad.png").write_text("no picture")
    return folder


@pytest.fixture
def lumina(capsys):
    def call(*words):
        code = run(["caption", *map(str, words)])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err.splitlines()

    return call


def files(out):
    return out.read_bytes(), out.with_name(f"{out.name}.rejects.jsonl").read_bytes()


@pytest.mark.slow
def test_twenty_kills_produce_the_same_file(lumina, photos, tmp_path):
    words = (photos, "--engine", "noop", "--levels", "short", "--langs", "en,de", "--batch", 4, "--out")
    assert lumina(*words, tmp_path / "whole.jsonl")[0] == 0
    out = tmp_path / "killed.jsonl"
    command = [sys.executable, "-W", "ignore", "-c", KILLER, *map(str, words), str(out)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(told) == 20
    assert 15 < int(told[-1]) < 240, told  # every run came further, and the last was killed, too
    assert lumina(*words, out)[0] == 0
    assert files(out) == files(tmp_path / "whole.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 239])
def test_only_a_torn_line_is_written_again(lumina, photos, tmp_path, kept):
    words = (photos, "--engine", "noop", "--levels", "short", "--out")
    whole, out = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert lumina(*words, whole)[0] == 0
    (tmp_path / "torn.jsonl.state.json").write_bytes((tmp_path / "whole.jsonl.state.json").read_bytes())
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:kept]) + lines[kept][:17])
    left_out = files(whole)[1].splitlines(keepends=True)
    before = [line for line in left_out if json.loads(line)["row"] < kept]
    (tmp_path / "torn.jsonl.rejects.jsonl").write_bytes(b"".join(before) + b'{"ro')
    code, (told,), _ = lumina(*words, out)
    assert code == 0
    assert files(out) == files(whole)
    assert told["pictures"] <= 240 - kept + 8


def test_rejects_without_rows_after_a_power_failure_are_dropped(lumina, photos, tmp_path):
    words = (photos, "--engine", "noop", "--levels", "short", "--out")
    whole, out = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    lumina(*words, whole)
    (tmp_path / "cut.jsonl.state.json").write_bytes((tmp_path / "whole.jsonl.state.json").read_bytes())
    out.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:20]))
    (tmp_path / "cut.jsonl.rejects.jsonl").write_bytes(files(whole)[1])
    assert lumina(*words, out)[0] == 0
    assert files(out) == files(whole)


def test_a_finished_file_is_unchanged_and_no_model_is_loaded(lumina, photos, tmp_path, monkeypatch):
    words = (photos, "--engine", "noop", "--levels", "short", "--out", tmp_path / "a.jsonl")
    lumina(*words)
    before = files(tmp_path / "a.jsonl")
    monkeypatch.setattr("lumina_cli.core.unicap.engines.noop.Captioner.__init__", None)
    code, (told,), _ = lumina(*words)
    assert (code, told["pictures"]) == (0, 0)
    assert files(tmp_path / "a.jsonl") == before
    assert lumina(*words, "--max-bad-rate", 0)[0] == 3  # those of the earlier run count


def test_new_images_at_the_end_are_added(lumina, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "a.jsonl"
    folder.mkdir()
    words = (folder, "--engine", "noop", "--levels", "short", "--out", out)
    for names in (["a", "b"], ["c"]):
        for name in names:
            Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        lumina(*words)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()] == ["a", "b", "c"]
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    code, _, err = lumina(*words)
    assert code == 1
    assert err[-1] == (
        f"lumina caption: row 0 of the source is {folder}/0.png, but in {out} it is {folder}/a.png: the source has "
        f"changed since; to keep these captions, rerun with --out NEW --reuse {out}"
    )


def test_different_settings_and_files_are_rejected(lumina, photos, tmp_path):
    words = (photos, "--engine", "noop", "--levels", "short", "--out", tmp_path / "a.jsonl")
    lumina(*words)
    code, _, err = lumina(*words, "--langs", "de", "--seed", 3)
    assert code == 2
    assert err == [
        f"lumina caption: {tmp_path}/a.jsonl was started with langs=en, but this run has langs=de; choose another file, or delete it and "
        "a.jsonl.state.json"
    ]
    (tmp_path / "b.jsonl").write_text("{}\n")
    code, _, err = lumina(*words[:-1], tmp_path / "b.jsonl")
    assert code == 2
    assert err == [
        f"lumina caption: {tmp_path}/b.jsonl exists and was not written by `lumina caption --out`; choose another file"
    ]


def test_two_processes_cannot_write_the_same_file(tmp_path):
    with (
        ResumableFile(tmp_path / "a.jsonl", {}),
        pytest.raises(LuminaError, match="is being written by another process"),
    ):
        ResumableFile(tmp_path / "a.jsonl", {})


def test_splits_are_disjoint_and_equal_the_whole_run(lumina, photos):
    words = (photos, "--engine", "noop", "--levels", "short", "--max-bad-rate", 1)
    whole = {row["key"]: row for row in lumina(*words)[1]}
    for count in (2, 5):
        shares = [lumina(*words, "--split", f"{index}/{count}")[1] for index in range(count)]
        keys = [row["key"] for share in shares for row in share]
        assert sorted(keys) == sorted(whole)
        assert all(row == whole[row["key"]] for share in shares for row in share)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_written_rows_are_complete(photos, tmp_path):
    out = tmp_path / "a.jsonl"
    code = (
        "import resource, signal, sys; from lumina_cli.cli.app import main\n"
        "from lumina_cli.core.unicap.checks.rules import check_caption as check\n"
        "check('a red car', 'short', 'en')  # py3langid unpacks its model into a file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.argv[0] = 'lumina'; main()"
    )
    words = ["caption", str(photos), "--engine", "noop", "--levels", "short", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"lumina caption: cannot write {out}: File too large")
    again = subprocess.run([sys.executable, "-m", "lumina_cli", *words], capture_output=True, text=True)
    assert again.returncode == 0
    assert len(out.read_text().splitlines()) == 240


@pytest.mark.slow
def test_a_closed_pipe_and_ctrl_c_are_not_errors(photos, tmp_path):
    words = f"{sys.executable} -m lumina_cli caption {photos} --engine noop --levels short"
    shell = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -1"], capture_output=True, text=True
    )
    assert shell.returncode == 0, shell.stderr
    assert json.loads(shell.stdout)["key"] == "000"
    code = (
        "import _thread, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lumina_cli.cli.app import main; from lumina_cli.core.unicap.resumable_file import ResumableFile\n"
        "keep = ResumableFile.write\n"
        "ResumableFile.write = lambda self, row: keep(self, row) and (_thread.interrupt_main() if row['key'] == '020' else 1)\n"
        "sys.argv[0] = 'lumina'; main()"
    )
    out = tmp_path / "a.jsonl"
    stopped = subprocess.run(
        [sys.executable, "-c", code, *words.split()[3:], "--out", str(out)], capture_output=True, text=True
    )
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == "lumina caption: interrupted; rerun the same command to resume"
    assert 20 <= len(out.read_text().splitlines()) < 240
    assert os.path.exists(f"{out}.state.json")


def test_captioned_rows_of_shards_can_be_packed_or_applied(lumina, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["shard", str(photos), "first", "--per-shard", "100"]) == 0
    capsys.readouterr()
    code, rows, _ = lumina("first", "--engine", "noop", "--levels", "short", "--max-bad-rate", 1)
    assert (code, len(rows)) == (0, 240)
    assert rows[0]["image"] == "first/000000.tar#000.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["shard", "rows.jsonl", "second"]) == 0
    assert sum(row["samples"] for row in map(json.loads, capsys.readouterr().out.splitlines())) == 240

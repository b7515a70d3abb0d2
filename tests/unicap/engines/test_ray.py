"""Captioning on a local Ray with two workers: the same rows as without Ray, also if workers are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from tiny_captioner import run_caption

from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import draw_scene

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own settings
ROOT = Path(__file__).parents[3]
COUNT = 28  # images, in batches of 4
WORDS = (
    "--levels",
    "short,tags",
    "--langs",
    "en,de",
    "--batch",
    "4",
    "--max-bad-rate",
    "1",
    "--device",
    "cpu",
)


def rays(session: int) -> list[psutil.Process]:
    """Return the processes of Ray that live in a session of the system."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        lives = process.info["status"] != psutil.STATUS_ZOMBIE and ("ray::" in words or "/ray/" in words)
        if lives and _session(process.pid) == session:
            found.append(process)
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def wait_for(what, seconds: float = 180):
    """Return what `what` gives, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(source: Path, out: Path, **env) -> subprocess.Popen:
    """Begin `lumina caption --engine ray:nano` in a session and process group of its own."""
    words = [sys.executable, "-m", "lumina_cli", "caption", str(source), *WORDS]
    return subprocess.Popen(
        [*words, "--engine", "ray:nano", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def cluster():
    """Yield the address of a cluster of this machine with two workers."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of rendered scenes, with one file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(render([draw_scene(321, number) for number in range(COUNT)])):
        image.image.save(folder / f"{number:03d}.png")
    (folder / "005-bad.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """Return the file of captions that the engine writes without Ray."""
    from lumina_cli.cli.app import run

    out = tmp_path_factory.mktemp("plain") / "rows.jsonl"
    assert run(["caption", str(photos), *WORDS, "--engine", "nano", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_killed_worker_is_restarted_without_changing_rows(cluster, photos, plain, tmp_path):
    out = tmp_path / "rows.jsonl"
    process = start(photos, out, RAY_ADDRESS=cluster)
    wait_for(lambda: lines(out) >= 4)
    mine = psutil.Process().children(recursive=True)  # the cluster is this process's own
    workers = [one for one in mine if "MapWorker" in " ".join(one.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert lines(out) < COUNT
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert out.read_bytes() == plain.read_bytes()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == COUNT
    assert {row["captioned_by"]["de"]["short"] for row in rows} == {"nano"}
    assert "skipped" in err
    assert "005-bad.png: truncated or not an image" in err
    assert [line for line in err.splitlines() if not line.startswith("lumina caption: ")] == []


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_resumes_to_the_same_file(cluster, photos, plain, tmp_path):
    out = tmp_path / "rows.jsonl"
    process = start(photos, out)  # a cluster of its own
    wait_for(lambda: lines(out) >= 4)
    assert len(rays(process.pid)) > 3
    os.killpg(process.pid, signal.SIGKILL)
    assert lines(out) < COUNT
    _, err = process.communicate(timeout=180)
    wait_for(lambda: not rays(process.pid), 30)
    assert process.returncode == -signal.SIGKILL, err
    process = start(photos, out, RAY_ADDRESS=cluster)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert out.read_bytes() == plain.read_bytes()
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.rejects.jsonl"))] == [
        plain.with_name("rows.jsonl.rejects.jsonl").read_bytes()
    ]


@pytest.mark.slow
def test_scores_retries_and_kept_captions_are_the_same(cluster, photos, tmp_path, capsys):
    rows = [
        {"image": str(path), "captions": {"en": {"short": "my own words"}} if number % 2 else {}}
        for number, path in enumerate(sorted(photos.glob("*.png"))[:12])
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {}
    lumina = partial(run_caption, capsys, source, *WORDS, "--keep", "--retries", 2, "--score", "nano@0.5")
    for engine in ("noop", "ray:noop"):
        code, found, err = lumina("--engine", engine)
        assert code == 0, err
        told[engine] = found, err
    assert told["ray:noop"] == told["noop"]
    found = told["noop"][0]
    assert sum("error" in row for row in found) == 1
    assert {row["captions"]["en"]["short"] for row in found[1:4:2]} == {"my own words"}
    assert any("caption_scores" in row for row in found)
    assert any(bad["code"] == "not there" for row in found for bad in row.get("rejected_captions", ()))


def test_counts_of_workers_are_reported_if_the_first_image_is_bad():
    from lumina_cli.core.unicap.engines.ray import _unpack
    from lumina_cli.core.unicap.items import CaptionItem
    from lumina_cli.core.unicap.stats import CaptionStats

    good = {"error": None, "captions": {}, "scores": {}, "rejected": [], "counts": {"questions": 2}}
    brought = {"calls": 1, "told": {"unread_scores": 3, "cut_scores": 1}}
    brought["shots"] = [{**good, "error": "gone", "counts": {}}, good]
    items = [CaptionItem(0, {}), CaptionItem(1, {})]
    stats = CaptionStats()
    stats.add(items, _unpack(items, json.dumps(brought)))
    row = stats.row()
    assert (row["not_scored"], row["scored_cut"], row["questions"], row["bad_pictures"]) == (3, 1, 2, 1)


@pytest.mark.slow
def test_only_ray_noise_is_removed_from_stderr(capfd):
    from lumina_cli.core.io.parallel.ray_logging import NOISE, without_noise

    with without_noise(), without_noise():
        os.write(2, b"[E] core_worker.cc: Actor 'A' " + NOISE + b". See elsewhere\nsomething else\n")
    os.write(2, b"and after\n")
    assert capfd.readouterr().err == "something else\nand after\n"

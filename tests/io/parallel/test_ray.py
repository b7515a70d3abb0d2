"""Work items on a local Ray with two workers, against a real S3 server; workers and drivers are killed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyRejects, UsageError
from lumina_cli.core.images.io import png_bytes
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.parallel import ray_pool
from lumina_cli.core.io.parallel.ray_pool import RayRun, map_on_ray
from lumina_cli.core.io.parallel.workers import Workers, run_items

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own settings
ROOT = Path(__file__).parents[3]
RAY = Workers(2, True)


@pytest.fixture(scope="module")
def gate():
    """What holds uploads to the bucket."""
    from local_s3 import Gate  # here: workers import what the module imports

    return Gate()


@pytest.fixture(scope="module")
def bucket(gate):
    """A bucket on a local S3 server."""
    from local_s3 import local_bucket

    with local_bucket("ray", gate) as url:
        yield url


@pytest.fixture(scope="module")
def cluster(bucket):
    """The address of a cluster of this machine with two CPUs, whose workers know the bucket."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def worker_processes() -> list[psutil.Process]:
    """Return the processes of `Worker` actors of the cluster, which are children of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # also a process that ends at this moment
            found += [process] if "ray::Worker" in " ".join(process.cmdline()) else []
    return found


def wait_for_no_workers(seconds: float = 60) -> None:
    """Wait until Ray has ended the workers of a run that is over."""
    end = time.monotonic() + seconds
    while worker_processes():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill_after_first(rows) -> list[dict]:
    """Return all rows; one worker is killed when the first of them has arrived."""
    wait_for_no_workers()
    first = next(rows)
    busy = worker_processes()
    assert len(busy) == 2
    busy[0].kill()
    return [first, *rows]


def stop_driver(command: str, cluster: str, gate, uploads: str, number: int = signal.SIGKILL) -> str:
    """Run `lumina COMMAND` on the cluster; send it a signal while both workers upload; return its stderr.

    uploads   pattern of the files that workers write; two of them are written before
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lumina_cli", *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with gate.closed(uploads, 2):
        gate.wait_for(2)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
        wait_for_no_workers(10)
    assert process.returncode == (130 if number == signal.SIGINT else -number), err
    return err


@contextmanager
def killed_worker(gate, uploads: str) -> Iterator[None]:
    """Kill one of two workers during the block, while both upload; `uploads` is that of `stop_driver`."""
    wait_for_no_workers()

    def kill_one() -> None:
        with opening:
            gate.wait_for(2)
            busy = worker_processes()
            assert len(busy) == 2
            busy[0].kill()
            busy[0].wait(30)

    opening = ExitStack()
    opening.enter_context(gate.closed(uploads, 1))
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_one)
        yield
        killing.result()


def read_folder(place: str) -> dict[str, bytes]:
    """Return {path: content} of all files below a folder or URL."""
    system, root = fsspec.core.url_to_fs(str(place), use_listings_cache=False)
    root = root.rstrip("/")
    system.invalidate_cache()
    return {path.removeprefix(root): data for path, data in sorted(system.cat(system.find(root)).items())}


def copy_folder(source: str, dest: str) -> None:
    for path, data in read_folder(source).items():
        filesystem.write_file(f"{dest}{path}", data)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A local folder of six shards with two samples each."""
    from lumina_cli.core.shards.pack import write_shards
    from lumina_cli.core.sources.source import read_source

    folder = tmp_path_factory.mktemp("local") / "shards"
    list(write_shards(read_source("nano:12?size=64&seed=3"), folder, per_shard=2))
    return folder


class Sizes(list):
    """The sizes of records and items as they pass through the driver."""

    def __init__(self, patch):
        super().__init__()
        get, pack = ray.get, ray_pool._pack

        def measured_get(reference, *words, **settings):
            value = get(reference, *words, **settings)
            if isinstance(value, str):
                self.append(len(value))
            return value

        patch.setattr(ray, "get", measured_get)
        patch.setattr(ray_pool, "_pack", lambda *words: self.measure(pack(*words)))

    def measure(self, data):
        self.append(len(data))
        return data


def slow_square(number: int) -> dict:
    time.sleep(0.1 * (number % 3))  # records come back in another order
    return {"square": number**2}


def fail_at_three(number: int) -> int:
    if number == 3:
        raise TooManyRejects("three is too many")
    return number


def die(number: int) -> int:
    os._exit(9)


def test_records_are_in_order_although_a_worker_is_killed(cluster):
    notes = []
    rows = map_on_ray(slow_square, range(12), RayRun(2, notify=notes.append))
    assert kill_after_first(rows) == [{"square": number**2} for number in range(12)]
    assert len(notes) == 1
    assert "died; another one repeats its item" in notes[0]
    wait_for_no_workers()


def test_an_error_in_a_worker_is_the_error_of_the_run(cluster):
    with pytest.raises(TooManyRejects, match=r"^three is too many$"):
        list(run_items(fail_at_three, range(8), RAY))


def test_an_item_that_kills_its_workers_ends_the_run_with_one_line(cluster):
    with pytest.raises(LuminaError, match=r"^3 Ray workers died with the same item, probably out of memory"):
        list(run_items(die, range(1), RAY))


def test_a_folder_of_one_machine_is_refused_with_the_reason(cluster, tmp_path, monkeypatch):
    """A node that does not see the folder is simulated by a probe that disappears."""
    monkeypatch.setattr(filesystem, "write_file", lambda *_, **__: None)
    with pytest.raises(
        UsageError, match=f"the Ray node .* does not see {tmp_path}, a folder of another machine"
    ):
        list(run_items(slow_square, range(3), RAY, outputs=[tmp_path]))


def put_photos(url: str, count: int) -> None:
    """Write images with captions next to them, and a file that is not an image."""
    for number in range(count):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 24, 3), np.uint8))
        filesystem.write_file(f"{url}/{number:02d}.png", png_bytes(image))
        filesystem.write_file(f"{url}/{number:02d}.txt", f"noise {number}".encode())
    filesystem.write_file(f"{url}/broken.jpg", b"\xff\xd8")


def test_shards_on_s3_are_those_of_a_local_run(cluster, bucket, gate, tmp_path, monkeypatch, lumina):
    source, dest, settings = f"{bucket}/photos", f"{bucket}/packed", "--per-shard 2 --max-bad-rate 1"
    put_photos(source, 19)
    assert lumina(f"shard {source} {tmp_path}/out {settings} --workers 0")[0] == 0
    stop_driver(f"shard {source} {dest} {settings} --workers ray:2", cluster, gate, r"packed/.*\.tar")
    assert not filesystem.is_file(f"{dest}/shards.json")
    sizes = Sizes(monkeypatch)
    with killed_worker(gate, r"packed/.*\.tar"):
        code, rows, err = lumina(f"shard {source} {dest} {settings} --workers ray:2")
    assert (code, len(rows)) == (0, 10), err
    # two were uploaded before the first driver ended; either worker may have been ahead
    assert sum(row.get("kept", False) for row in rows) == 2
    assert err.count("died; another one repeats") == 1
    assert read_folder(dest) == read_folder(tmp_path / "out")
    assert len(sizes) >= 16
    assert max(sizes) < 8192


PROMPTS = " ".join(f"'{count} red balls'" for count in ("one", "two", "three", "four"))


@pytest.mark.parametrize(
    ("command", "uploads", "results"),
    [
        ("shard score {place} --scores sharpness,phash", r"overlays/.*\.tar$", 6),
        ("shard encode {place} --model nano --what latents,text --size 64", r"overlays/.*\.tar$", 12),
        (
            f"sample {PROMPTS} --model nano --count 3 --batch 2 --steps 1 --size 64 --out {{place}}",
            r"\.png$",
            12,
        ),
        (
            "eval geneval --model nano --per-task 1 --pictures 2 --batch 3 --plan steps=1 --out {place}",
            r"\.png$",
            13,
        ),
    ],
    ids=["score", "encode", "sample", "eval"],
)
def test_results_are_those_of_a_local_run_although_driver_and_worker_are_killed(
    command, uploads, results, cluster, bucket, gate, shards, tmp_path, monkeypatch, lumina, request
):
    local, remote = str(tmp_path / "local"), f"{bucket}/{request.node.callspec.id}"
    if command.startswith("shard"):
        copy_folder(shards, local)
        copy_folder(shards, remote)
    code, expected, messages = lumina(command.format(place=local))
    assert (code, len(expected)) == (0, results)
    monkeypatch.chdir(tmp_path)
    on_ray, uploads = f"{command.format(place=remote)} --workers ray:2", f"{Path(remote).name}/.*{uploads}"
    stop_driver(on_ray, cluster, gate, uploads)
    partial = read_folder(remote)
    sizes = Sizes(monkeypatch)
    with killed_worker(gate, uploads):
        code, rows, err = lumina(on_ray)
    assert (code, len(rows)) == (0, results), err
    assert err.count("died; another one repeats its item") == 1
    lines = [line for line in err.splitlines() if "died" not in line]
    assert lines == messages.replace(local, remote).splitlines()  # not once per worker
    found, wanted = read_folder(remote), read_folder(local)
    if "/rows.jsonl" in wanted:
        wanted["/rows.jsonl"] = wanted["/rows.jsonl"].replace(local.encode(), remote.encode())
    assert found == wanted
    assert partial.keys() < found.keys() | {path for path in partial if path.endswith("building.json")}
    assert len(partial) < len(found)
    assert max(sizes) < 16384
    assert os.listdir(tmp_path) == ["local"]  # a URL is not a folder of this machine


def test_a_killed_worker_leaves_no_partial_file_in_a_local_folder(cluster, shards, tmp_path, monkeypatch):
    from lumina_cli.core.curation.scores import score_shards

    copy_folder(shards, tmp_path)
    rows = score_shards(str(tmp_path), ["entropy"], workers="ray:2")
    first = next(rows)
    (tmp_path / "overlays/scores/0001/.0123456789ab.part").touch()  # as a killed worker leaves it
    worker_processes()[0].kill()
    assert len([first, *rows]) == 6
    assert not [path for path in read_folder(tmp_path) if ".part" in path]

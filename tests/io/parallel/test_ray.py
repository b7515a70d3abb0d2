"""Work items on a local Ray with two workers, against a real S3 server; workers and drivers are killed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
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
def bucket():
    """A bucket on a local S3 server."""
    from local_s3 import local_bucket  # here: workers import what the module imports

    with local_bucket("ray") as url:
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


def wait_for_no_workers() -> None:
    """Wait until Ray has ended the workers of a run that is over."""
    end = time.monotonic() + 60
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


def kill_driver(command: str, cluster: str) -> None:
    """Run `lumina COMMAND` on the cluster and kill it when its first row has arrived."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lumina_cli", *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert first, err
    assert process.returncode == -signal.SIGKILL
    wait_for_no_workers()


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


def test_shards_on_s3_are_those_of_a_local_run(cluster, bucket, tmp_path, monkeypatch):
    from lumina_cli.core.sources.packing import PackSettings, pack_source

    source, dest, notes = f"{bucket}/photos", f"{bucket}/packed", []
    put_photos(source, 19)
    list(pack_source(source, str(tmp_path / "out"), PackSettings(per_shard=2, max_bad_rate=1, workers=0)))
    kill_driver(f"shard {source} {dest} --per-shard 2 --max-bad-rate 1 --workers ray:2", cluster)
    assert not filesystem.is_file(f"{dest}/shards.json")
    sizes = Sizes(monkeypatch)
    settings = PackSettings(per_shard=2, max_bad_rate=1, workers="ray:2")
    rows = kill_after_first(pack_source(source, dest, settings, notify=notes.append))
    assert len(rows) == 10
    assert rows[0]["kept"]
    assert sum("died; another one repeats" in note for note in notes) == 1
    assert read_folder(dest) == read_folder(tmp_path / "out")
    assert len(sizes) >= 20
    assert max(sizes) < 8192


def test_scores_on_s3_are_those_of_a_local_run(cluster, bucket, shards, tmp_path, monkeypatch, lumina):
    from lumina_cli.core.curation.scores import score_shards

    copy_folder(shards, tmp_path)
    list(score_shards(str(tmp_path), ["sharpness", "phash"]))
    local, notes, sizes = read_folder(tmp_path), [], Sizes(monkeypatch)
    copy_folder(shards, f"{bucket}/scored")
    run = partial(score_shards, f"{bucket}/scored", ["sharpness", "phash"], notify=notes.append)
    rows = kill_after_first(run(workers="ray:2"))
    assert [row["measured"] for row in rows] == [2] * 6
    assert len(notes) == 1
    assert read_folder(f"{bucket}/scored") == local
    assert len(sizes) >= 12
    assert max(sizes) < 8192


def test_latents_and_text_on_s3_are_those_of_a_local_run(
    cluster, bucket, shards, tmp_path, monkeypatch, lumina
):
    from lumina_cli.core.dataset.precompute import encode_shards

    copy_folder(shards, tmp_path)
    list(encode_shards(str(tmp_path), "nano", ["latents", "text"], [64]))
    local, notes, sizes = read_folder(tmp_path), [], Sizes(monkeypatch)
    copy_folder(shards, f"{bucket}/encoded")
    run = partial(encode_shards, f"{bucket}/encoded", "nano", ["latents", "text"], [64], workers="ray:2")
    rows = list(run(notify=notes.append))
    assert [row["encoded"] for row in rows[:6]] == [2] * 6
    assert notes == []
    assert read_folder(f"{bucket}/encoded") == local
    assert len(sizes) >= 24
    assert max(sizes) < 8192


def test_images_on_s3_are_those_of_a_local_run(cluster, bucket, tmp_path, monkeypatch, lumina):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{count} red balls\n" for count in ("one", "two", "three", "four")))
    settings = f"sample {prompts} --model nano --count 3 --batch 2 --steps 1 --size 64"
    code, expected, _ = lumina(f"{settings} --out {tmp_path}/images")
    assert code == 0
    local, sizes = read_folder(tmp_path / "images"), Sizes(monkeypatch)
    code, rows, err = lumina(f"{settings} --out {bucket}/images --workers ray:2")
    assert code == 0, err
    for row in expected:
        row["image"] = row["image"].replace(str(tmp_path), bucket)
    assert rows == expected
    assert read_folder(f"{bucket}/images") == local
    assert max(sizes) < 16384
    filesystem.remove(f"{bucket}/images", [Path(rows[3]["image"]).name])  # as after a kill of the driver
    code, rows, err = lumina(f"{settings} --out {bucket}/images")
    assert [row.get("resumed", False) for row in rows] == [True] * 3 + [False] + [True] * 8
    assert read_folder(f"{bucket}/images") == local


def test_scores_of_images_on_s3_are_those_of_a_local_run(cluster, bucket, tmp_path, monkeypatch, lumina):
    settings = "eval geneval --model nano --per-task 1 --pictures 2 --batch 3 --plan steps=1"
    assert lumina(f"{settings} --out {tmp_path}/eval")[0] == 0
    local, sizes = read_folder(tmp_path / "eval"), Sizes(monkeypatch)
    code, rows, err = lumina(f"{settings} --out {bucket}/eval --workers ray:2")
    assert code == 0, err
    found = read_folder(f"{bucket}/eval")
    rows = local["/rows.jsonl"].decode().replace(str(tmp_path), bucket).encode()
    assert found == local | {"/rows.jsonl": rows}
    assert len([name for name in found if name.endswith(".png")]) == 12
    assert max(sizes) < 8192


def test_a_killed_worker_leaves_no_partial_file_in_a_local_folder(cluster, shards, tmp_path, monkeypatch):
    from lumina_cli.core.curation.scores import score_shards

    copy_folder(shards, tmp_path)
    rows = score_shards(str(tmp_path), ["entropy"], workers="ray:2")
    first = next(rows)
    (tmp_path / "overlays/scores/0001/.0123456789ab.part").touch()  # as a killed worker leaves it
    worker_processes()[0].kill()
    assert len([first, *rows]) == 6
    assert not [path for path in read_folder(tmp_path) if ".part" in path]

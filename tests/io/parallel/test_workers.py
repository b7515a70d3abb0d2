"""Work items in this process, in worker processes and, with a stand-in for Ray, the messages about Ray."""

import os
import socket
import sys
from pathlib import Path

import pytest

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.io.parallel.process_pool import map_in_threads
from lumina_cli.core.io.parallel.ray_pool import _probes
from lumina_cli.core.io.parallel.ray_workers import MAX_RECORD, Surroundings, Worker
from lumina_cli.core.io.parallel.workers import Workers, parse_workers, run_items


@pytest.mark.parametrize(
    ("text", "workers"),
    [
        (None, Workers(None)),
        (0, Workers(0)),
        ("8", Workers(8)),
        ("ray", Workers(None, True)),
        ("ray:1", Workers(1, True)),
        (" ray:64 ", Workers(64, True)),
        (Workers(3), Workers(3)),
    ],
)
def test_workers_are_a_number_or_ray(text, workers):
    assert parse_workers(text) == workers


@pytest.mark.parametrize("text", ["", "ray:", "ray:x", "rays", "-1", "1.5", "Ray", "ray:9999999", True])
def test_other_workers_are_refused(text):
    with pytest.raises(UsageError, match=f"--workers {text}: must be a number of at least 0, ray, or ray:N"):
        parse_workers(text)


@pytest.mark.parametrize("text", ["ray:0", "ray:00", " ray:0 "])
def test_ray_needs_a_worker(text):
    with pytest.raises(UsageError, match="ray:N needs N of at least 1"):
        parse_workers(text)


def test_the_lowest_number_is_that_of_the_command(lumina, tmp_path):
    for command in ("score", "encode"):
        code, _, err = lumina(f"shard {command} {tmp_path} --workers 0")
        assert code == 2
        assert "--workers 0: must be a number of at least 1" in err


def double(number: int) -> list[int]:
    return [os.getpid(), 2 * number]


@pytest.mark.parametrize("count", [0, 1])
def test_no_process_is_started_for_one_worker(count):
    assert list(run_items(double, range(3), Workers(count))) == [[os.getpid(), n] for n in (0, 2, 4)]


def test_no_process_is_started_for_one_item():
    assert list(run_items(double, [4], Workers(8))) == [[os.getpid(), 8]]


def test_worker_processes_keep_the_order():
    found = list(run_items(double, range(5), Workers(2)))
    assert [number for _, number in found] == [0, 2, 4, 6, 8]
    assert os.getpid() not in {pid for pid, _ in found}


def test_ray_cannot_write_to_the_memory_of_this_process():
    with pytest.raises(UsageError, match="memory://x is in the memory of this process"):
        Workers(None, True).for_output("memory://x")
    assert Workers(4).for_output("memory://x") == Workers(1)
    assert Workers(4, True).for_output("s3://b/x") == Workers(4, True)


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/deep/x", "memory://x"])
def test_a_url_that_typer_made_a_path_is_a_url_for_ray_workers(monkeypatch, url):
    from lumina_cli.core.io.parallel import ray_pool

    monkeypatch.setattr(ray_pool, "map_on_ray", lambda work, items, run: iter([run.outputs, run.inputs]))
    found = run_items(double, [1], Workers(2, True), outputs=[Path(url)], inputs=[Path(url)])
    assert list(found) == [(url,), (url,)]


def test_a_missing_ray_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"--workers ray needs `pip install 'lumina-cli\[ray\]'`"):
        list(run_items(double, range(3), Workers(2, True)))


def test_a_node_that_does_not_see_an_output_folder_is_named_with_the_reason(tmp_path):
    out = tmp_path / "out"
    with _probes([str(out), "s3://bucket/x"]) as probes:
        assert list(probes) == [str(out)]
        assert Surroundings(str(tmp_path), probes).find_problem() is None
        os.remove(probes[str(out)])  # as on a node whose folder of this name is another one
        problem = Surroundings(str(tmp_path), probes).find_problem()
    assert problem == (
        f"does not see {out}, a folder of another machine only; write to s3:// or to a file system that all "
        "nodes share"
    )
    assert list(out.iterdir()) == []


def test_a_node_that_does_not_see_an_input_or_has_another_version_is_named_with_the_reason(tmp_path):
    here = Surroundings(str(tmp_path), {}, (str(tmp_path), "s3://bucket/x"))
    assert here.find_problem() is None
    gone = Surroundings(str(tmp_path), {}, (f"{tmp_path}/none",))
    assert f"does not see {tmp_path}/none; read from s3:// or" in gone.find_problem()
    other = Surroundings(str(tmp_path), {}, version="0.0.1")
    assert "not 0.0.1; install the same version on all nodes" in other.find_problem()


def test_a_worker_works_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    host, problem = Worker(Surroundings(str(tmp_path), {})).check()
    assert os.getcwd() == str(tmp_path)
    assert host
    assert problem is None


def blow_up(size: int) -> str:
    return "x" * size


def test_a_large_record_or_item_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a worker changes its folder, here that of the tests
    ray = pytest.importorskip("ray")
    from lumina_cli.core.io.parallel import ray_pool

    worker = Worker(Surroundings(str(tmp_path), {}))
    assert len(worker.run(ray_pool._pack(ray, blow_up, 1000))) == 1002
    with pytest.raises(LuminaError, match="a record of 4 MiB is too large to return"):
        worker.run(ray_pool._pack(ray, blow_up, MAX_RECORD))
    with pytest.raises(LuminaError, match="an item of 16 MiB is too large to send to a Ray worker"):
        ray_pool._pack(ray, blow_up, bytes(ray_pool.MAX_ITEM))


def test_threads_keep_the_order_and_read_few_items_ahead():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    found = map_in_threads(lambda number: 2 * number, items, threads=3)
    assert [next(found) for _ in range(2)] == [0, 2]
    assert len(taken) <= 8
    assert list(found) == [2 * number for number in range(2, 100)]
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 // number, range(3)))


def test_an_address_without_a_cluster_is_named_at_once():
    pytest.importorskip("ray")
    from lumina_cli.core.io.parallel.ray_library import check_address

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(LuminaError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            check_address(f"127.0.0.1:{port}")
        free.listen()
        check_address(f"127.0.0.1:{port}")
    for address in ("", "auto", "local", "ray://host:10001"):
        check_address(address)
    with pytest.raises(LuminaError, match=r"no Ray cluster answers at no-such-host\.invalid:6379"):
        check_address("no-such-host.invalid:6379")
    with pytest.raises(UsageError, match="RAY_ADDRESS http://h:8265 takes jobs"):
        check_address("http://h:8265")

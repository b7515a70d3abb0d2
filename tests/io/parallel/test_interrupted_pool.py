"""A pool that its caller leaves early ends its workers at once, and they remove their temporary files."""

import time
from pathlib import Path

import pytest

from lumina_cli.core.io.atomic import atomic_write
from lumina_cli.core.io.parallel.process_pool import map_in_order


def work(job):
    """Return a number at once, or write a file slowly."""
    folder, number = job
    if number:
        with atomic_write(Path(folder) / f"{number}.txt") as aside:
            aside.write_text("half")
            (Path(folder) / f"started-{number}").touch()
            time.sleep(60)
    return number


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_a_caller_that_stops_does_not_wait_for_running_jobs(error, tmp_path):
    results = map_in_order(work, [(str(tmp_path), number) for number in (0, 1, 2, 3, 4, 5)], 1)
    assert next(results) == 0
    while not (tmp_path / "started-1").exists():
        time.sleep(0.01)
    before = time.monotonic()
    if error is None:
        results.close()
    else:
        with pytest.raises(error):
            results.throw(error)
    assert time.monotonic() - before < 30  # not the minute of a job
    assert [path.name for path in tmp_path.iterdir()] == ["started-1"]

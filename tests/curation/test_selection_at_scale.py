"""The rehearsal of docs/scale.md at a size that takes seconds: planning and selection."""

import runpy
from pathlib import Path

import pytest

from lumina_cli.core.shards import manifest, pack
from lumina_cli.core.shards.manifest import read_batches
from lumina_cli.core.shards.reader import open_shards, read_totals

SCRIPT = Path(__file__).parents[2] / "docs" / "bench" / "scale.py"
ROWS = 5500


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    folder = tmp_path_factory.mktemp("scale")
    script = runpy.run_path(str(SCRIPT))
    with pytest.MonkeyPatch.context() as patched:  # the script replaces these in its own process
        patched.setattr(pack, "run_job", pack.run_job)
        patched.setattr(manifest, "_index_table", manifest._index_table)
        return folder, {name: script["run_step"](name, folder, ROWS) for name in script["STEPS"]}


def test_each_stage_contains_exactly_its_fraction(steps):
    found = steps[1]
    assert [found[name]["selected"] for name in ("best100", "best10", "best1")] == [5000, 500, 50]
    assert found["plan"]["shards"] == 6
    assert found["crops"]["samples"] == ROWS
    assert found["batches"]["samples"] == 500


def test_the_synthetic_pool_opens_like_shards(steps):
    pool = steps[0] / "pool"
    assert len(open_shards(pool)) == 6
    assert read_totals(pool)["samples"] == ROWS
    assert not (pool / "journal").exists()
    rows = [row for batch in manifest.read_manifest(str(pool), ["key", "score"]) for row in batch.to_pylist()]
    assert [row["key"] for row in rows] == [f"{number:09d}" for number in range(ROWS)]
    best = sorted(row["score"] for row in rows)[-50:]
    place = str(steps[0] / "best1" / "selection.parquet")
    chosen = [
        row["value"] for batch in read_batches(place, ["value"], "selection") for row in batch.to_pylist()
    ]
    assert sorted(chosen) == best

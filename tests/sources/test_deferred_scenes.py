"""Rows of nano: whose images workers render: the same rows as those that this process renders."""

import pytest

from lumina_cli.core.errors import UsageError
from lumina_cli.core.shards.journal import digest_rows, encode_images
from lumina_cli.core.shards.tar import TRUTH
from lumina_cli.core.sources.nano import CHUNK
from lumina_cli.core.sources.packing import PackSettings, pack_source
from lumina_cli.core.sources.source import read_deferred, read_source


@pytest.mark.parametrize("settings", ["size=32", "size=32&seed=9&held_out=1", "size=32&truth=1"])
def test_deferred_rows_are_those_of_one_process(settings):
    source = f"nano:{CHUNK + 3}?{settings}"
    expected = encode_images(list(read_source(source)))
    deferred = list(read_deferred(source))
    assert not any(name in row for row in deferred for name in TRUTH)
    found = encode_images(deferred)
    assert found == expected
    assert [list(row) for row in found] == [list(row) for row in expected]
    part = encode_images(deferred[CHUNK - 1 : CHUNK + 1])  # a shard that begins within a chunk
    assert digest_rows(part) == digest_rows(expected[CHUNK - 1 : CHUNK + 1])


@pytest.mark.parametrize("source", ["nano:0", "nano:5?sized=3"])
def test_a_source_is_checked_before_it_is_deferred(source):
    with pytest.raises(UsageError, match=source.replace("?", r"\?")):
        read_deferred(source)


@pytest.mark.parametrize(
    ("source", "dest", "message"),
    [
        ("hf:owner/name", "s3://bucket/x", "hf:owner/name: one process fetches these rows.*use --workers N"),
        ("nano:4", "memory://x", "memory://x is in the memory of this process, where workers cannot write"),
        ("memory://y", "s3://bucket/x", "memory://y is in the memory of this process"),
    ],
)
def test_sources_that_ray_workers_cannot_read_are_refused(source, dest, message):
    with pytest.raises(UsageError, match=message):
        list(pack_source(source, dest, PackSettings(workers="ray:2")))

"""Splits of rows among processes, batches of images, and sizes of ratios."""

from dataclasses import dataclass

import pytest

from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.buckets import crop_sizes
from lumina_cli.core.images.sizes import fit_ratio, parse_ratio
from lumina_cli.core.sampling.batching import (
    Split,
    default_batch_size,
    local_device,
    plan_batches,
    read_split,
    read_windows,
)


@dataclass
class Task:
    position: int
    size: tuple = (64, 64)
    tokens: int = 10


@pytest.mark.parametrize("count", [1, 3, 7])
def test_splits_partition_the_rows(count):
    shares = [Split(index, count) for index in range(count)]
    for row in range(20):
        assert sum(share.has(row) for share in shares) == 1
    for share in shares:
        assert share.size(20) == sum(share.has(row) for row in range(20))


def test_splits_are_divided_among_torchrun_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = set()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        split = read_split("1/3")
        rows |= {row for row in range(30) if split.has(row)}
        assert split.size(30) == 5
    assert rows == {row for row in range(30) if Split(1, 3).has(row)}
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UsageError, match="invalid torchrun environment: RANK='2', WORLD_SIZE='2'"):
        read_split(None)


def test_torchrun_processes_use_devices_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_device() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    devices = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(local_device())
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("text", ["", "3", "-1/2", "2/2", "0/0", "a/b"])
def test_invalid_splits_are_rejected(text):
    with pytest.raises(UsageError, match="must be I/N"):
        read_split(text or "x")


def test_batches_have_one_size_similar_lengths_and_keep_order():
    tasks = [Task(n, ((64, 64), (128, 64))[n % 2], (n * 37) % 100) for n in range(40)]
    batches = plan_batches(tasks, 4, 16)
    assert sorted(task.position for batch in batches for task in batch) == list(range(40))
    assert all(len({task.size for task in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert [batch[0].position for batch in batches] == sorted(batch[0].position for batch in batches)
    spread = [max(task.tokens for task in batch) - min(task.tokens for task in batch) for batch in batches]
    assert max(spread) < 30


def test_batch_size_depends_on_tokens():
    assert default_batch_size((64, 64), 10, 16) == 16
    assert default_batch_size((1024, 1024), 256, 16) == 2
    assert default_batch_size((2048, 2048), 256, 16) == 1
    sizes = [len(batch) for batch in plan_batches([Task(n, (512, 512), 256) for n in range(16)], None, 16)]
    assert sizes == [7, 7, 2]


def test_windows_read_few_batches_ahead():
    read = []

    def tasks():
        for position in range(100):
            read.append(position)
            yield Task(position)

    windows = read_windows(tasks(), 2, 16)
    assert [task.position for task in next(windows)] == list(range(8))
    assert len(read) == 8
    assert [task.position for window in windows for task in window] == list(range(8, 100))


@pytest.mark.parametrize(
    ("size", "resolution", "found"),
    [
        ("16:9", 1024, (1360, 768)),
        ("9:16", 1024, (768, 1360)),
        ("square", 1024, (1024, 1024)),
        ("landscape", 1024, (1168, 896)),
        ("Portrait", 1024, (896, 1168)),
        ("wide@256", 1024, (336, 192)),
        ("2.39:1@512", 1024, (768, 320)),
        ("10:1", 1024, (2048, 512)),
    ],
)
def test_ratios_become_sizes_of_training(size, resolution, found):
    ratio = parse_ratio(size)
    assert fit_ratio(ratio, resolution) == found
    assert found in crop_sizes(ratio[2] or resolution)


@pytest.mark.parametrize(
    ("size", "resolution", "found"),
    [
        ("16:9", 128, (176, 96)), ("4:3", 128, (144, 112)), ("portrait", 128, (112, 144)),
        ("9:16", 128, (96, 176)), ("3:2", 128, (144, 96)), ("2:1", 128, (160, 80)), ("16:9", 64, (80, 48)),
        ("square", 128, (128, 128)), ("landscape@256", 128, (304, 224)),
    ],
)  # fmt: skip
def test_small_models_have_sizes_in_steps_of_a_token(size, resolution, found):
    assert fit_ratio(parse_ratio(size), resolution, 16) == found


@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_every_ratio_has_a_near_size(resolution):
    for width, height in ((a, b) for a in range(1, 21) for b in range(1, 21) if 1 / 4 <= a / b <= 4):
        found = fit_ratio((width, height, None), resolution)
        assert 0.5 <= found[0] * found[1] / resolution**2 <= 1.07
        off = found[0] / found[1] / (width / height)
        assert max(off, 1 / off) <= (1.3 if resolution == 64 else 1.15)


def test_other_sizes_are_not_ratios():
    assert [parse_ratio(size) for size in ("1024x768", "512", 512, (64, 64), None)] == [None] * 5

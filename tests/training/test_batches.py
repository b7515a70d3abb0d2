"""Batches between data and trainer: reading ahead, and metrics that are read late."""

import threading
import time
from contextlib import closing

import pytest
import torch

from lumina_cli.core.training.batches import prefetch
from lumina_cli.core.training.progress import MetricsWindow


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_batches_arrive_in_order_and_one_is_read_ahead():
    read, started = [], threading.Event()

    def batch(step):
        read.append(step)
        if step == 4:
            started.set()
        return step

    with closing(prefetch(batch, range(3, 7))) as batches:
        assert next(batches) == 3
        assert started.wait(10)  # step 4 is read while step 3 is in use
        time.sleep(0.05)
        assert read == [3, 4]
        assert list(batches) == [4, 5, 6]
    assert read == [3, 4, 5, 6]
    assert prefetch_threads() == []
    assert list(prefetch(batch, range(0))) == []


def test_an_error_is_raised_at_its_step_after_all_earlier_batches():
    def batch(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    batches, arrived = prefetch(batch, range(5)), []
    with pytest.raises(ValueError, match="step 2"):
        arrived.extend(batches)
    assert arrived == [0, 1]
    assert prefetch_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_the_thread_ends_when_the_consumer_does(error):
    def consume():
        with closing(prefetch(lambda step: step, range(100))) as batches:
            for step in batches:
                if step == 3:
                    raise error

    with pytest.raises(error):
        consume()
    assert prefetch_threads() == []


def test_means_of_device_scalars_equal_means_of_numbers_exactly():
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0))
    numbers, tensors = MetricsWindow(), MetricsWindow()
    for loss in losses:
        numbers.add({"loss": loss.item(), "grad_norm": 1.0}, 2)
        tensors.add({"loss": loss, "grad_norm": 1.0}, 2)
    saved = tensors.to_json()
    assert saved == numbers.to_json()
    resumed = MetricsWindow(saved)
    for window in (numbers, tensors, resumed):
        window.add({"loss": losses[0], "grad_norm": 2.0}, 2)
    means = [{**window.close(), "pictures_per_second": None} for window in (numbers, tensors, resumed)]
    assert means[0] == means[1] == means[2]
    assert list(means[0]) == ["loss", "grad_norm", "pictures_per_second"]

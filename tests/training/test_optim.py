"""Optimizers, the learning rate, and the moving average of the weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.training.config import OptimizerSettings, Stage
from lumina_cli.core.training.optim import Optimizer, ema_decay, learning_rate, split_parameters, update_ema

TINY = NextDiTConfig(
    dim=24,
    num_layers=1,
    num_refiner_layers=1,
    num_heads=2,
    num_kv_heads=1,
    multiple_of=16,
    text_dim=8,
    axes_dim=(4, 4, 4),
)


def test_muon_trains_only_the_matrices_of_attention_and_feed_forward():
    model = NextDiT(TINY)
    matrices, rest = split_parameters(model)
    assert len(matrices) == 3 * 5  # blocks x (qkv, out, w1, w2, w3)
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    assert all(matrix.ndim == 2 for matrix in matrices)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_an_optimizer_lowers_a_loss_and_its_state_can_be_restored(name):
    def make():
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.ModuleDict({"attention": nn.Linear(8, 8)}), "b": nn.Linear(8, 8)})
        return model, Optimizer(model, OptimizerSettings(name=name))

    def run(model, optimizer, steps):
        x = torch.ones(4, 8)
        for _ in range(steps):
            loss = (model["b"](model["a"]["attention"](x)) - x).square().mean()
            loss.backward()
            optimizer.step(0.01)
        return loss.item()

    model, optimizer = make()
    first, last = run(model, optimizer, 1), run(model, optimizer, 19)
    assert last < first
    half, half_optimizer = make()
    run(half, half_optimizer, 10)
    other, other_optimizer = make()
    other.load_state_dict(half.state_dict())
    other_optimizer.load_state_dict(half_optimizer.state_dict())
    assert run(other, other_optimizer, 10) == last


def test_updates_of_muon_have_the_size_of_those_of_adamw():
    moved = {}
    for name in ("muon", "adamw"):
        torch.manual_seed(0)
        model = nn.ModuleDict({"x": nn.ModuleDict({"attention": nn.Linear(64, 64)})})
        optimizer = Optimizer(model, OptimizerSettings(name=name))
        weight = model["x"]["attention"].weight
        before = weight.detach().clone()
        weight.grad = torch.randn(64, 64)
        optimizer.step(0.01)
        moved[name] = (weight - before).square().mean().sqrt().item()
    assert 0.1 < moved["muon"] / moved["adamw"] < 1


def test_the_learning_rate_warms_up_stays_constant_and_decays_to_zero():
    stage = Stage(size=64, steps=100, batch=1, lr=1.0, warmup=10, decay=0.25)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:76]) == {1.0}
    assert rates[-1] == pytest.approx(1 / 25)
    assert all(a > b for a, b in pairwise(rates[75:]))


def test_the_average_drops_the_initial_weights_quickly_and_reaches_its_decay():
    assert ema_decay(1, 0.999) < 0.2
    assert ema_decay(10**6, 0.999) == 0.999
    average, weight = [torch.zeros(3)], [torch.ones(3)]
    update_ema(average, weight, 0.75)
    assert average[0].tolist() == [0.25] * 3

"""What a recipe does to the learning rate and the momentum, step by step."""

import dataclasses

import pytest
import torch
from fakes import plain
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from training.optimizer import build_optimizer
from training.recipe import RECIPES
from training.schedule import begin_epoch, learning_rate_factor


def follow(plan, steps_per_epoch):
    """Learning rate and momentum of every step, as a run sees them, and the epochs that start
    with an optimizer that has forgotten its state."""
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, plan)
    scheduler = LambdaLR(optimizer, learning_rate_factor(plan, steps_per_epoch))
    rates, momenta, forgetful = [], [], []
    for epoch in range(plan.epochs):
        begin_epoch(optimizer, plan, epoch)
        if not optimizer.state:
            forgetful.append(epoch)
        for _ in range(steps_per_epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            scheduler.step()
    assert all(group["lr"] == scheduler.get_last_lr()[0] for group in optimizer.param_groups)
    return rates, momenta, forgetful


def test_linear_schedule_without_warmup():
    rates, momenta, _ = follow(plain(), 4)
    assert rates == pytest.approx([0.5 * (1 - step / 40) for step in range(40)])
    assert set(momenta) == {0.9}


@pytest.mark.parametrize(
    "schedule, values",
    [  # of 100 steps, 20 warm up; 40, 60 and 80 are a quarter, half and three quarters down
        ("linear", {20: 1.0, 40: 0.75, 60: 0.5, 80: 0.25, 99: 1 / 80}),
        ("cosine", {20: 1.0, 40: 0.8535534, 60: 0.5, 80: 0.1464466, 99: 0.0003855}),
    ],
)
def test_schedule_after_a_warmup(schedule, values):
    rates, _, _ = follow(plain(schedule=schedule, warmup=0.2), 10)
    assert rates[:20] == pytest.approx([0.5 * (step + 1) / 21 for step in range(20)])
    for step, factor in values.items():
        assert rates[step] == pytest.approx(0.5 * factor, rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_ends_at_zero(schedule):
    factor = learning_rate_factor(plain(schedule=schedule, warmup=0.3), 7)
    assert factor(70) == pytest.approx(0, abs=1e-12)
    assert min(factor(step) for step in range(70)) > 0


def test_baseline_follows_the_notebook():
    """0.01 and momentum 0.9 to epoch 24, 0.001 and 0.7 from 25, 0.0001 and 0.9 from 40, with a
    new optimizer at each change; epochs counted from 0."""
    rates, momenta, forgetful = follow(RECIPES["baseline"], 3)
    assert rates == pytest.approx([0.01] * 75 + [0.001] * 45 + [0.0001] * 30)
    assert momenta == [0.9] * 75 + [0.7] * 45 + [0.9] * 30
    assert forgetful == [0, 25, 40]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 33, 100])
def test_rate_and_momentum_change_in_the_same_epoch(epochs):
    plan = dataclasses.replace(RECIPES["baseline"], epochs=epochs)
    rates, momenta, _ = follow(plan, 2)
    pairs = list(zip(rates, momenta, strict=True))
    assert pairs[::2] == pairs[1::2]
    different = list(dict.fromkeys(pairs))
    assert different == [(0.01, 0.9), (0.001, 0.7), (0.0001, 0.9)][: len(different)]
    assert len(different) == 3 or epochs < 5


def test_milestones_count_for_their_schedule_alone():
    plan = dataclasses.replace(RECIPES["baseline"], schedule="linear")
    _, momenta, forgetful = follow(plan, 1)
    assert set(momenta) == {0.9} and forgetful == [0]

"""The moving average, step by step against numbers worked out by hand."""

import pytest
import torch
from fakes import Operations
from torch import nn

from training.ema import WeightAverage


def drift(model, amount):
    """What a training step does to weights, statistics and counters."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(int(amount) if not tensor.is_floating_point() else amount)


@pytest.mark.parametrize("decay", [0.3, 0.998])
def test_average_of_weights_and_statistics(decay):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(20):
        drift(model, step + 1)
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * tensor.double()
    assert average.steps == 20
    for name, tensor in average.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert average.module[1].num_batches_tracked == model[1].num_batches_tracked == 210


def test_the_model_itself_is_left_alone():
    model = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = WeightAverage(model, 0.9)
    average.update()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in average.module.parameters())


def test_a_tensor_of_two_names_is_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), norm := nn.BatchNorm1d(2), norm)
    model[1].weight = model[0].weight
    average = WeightAverage(model, 0.9)
    before = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
    drift(model, 1)
    average.steps = 1000
    average.update()
    moved = [
        (tensor - before[name]).unique().tolist()
        for name, tensor in average.module.state_dict().items()
        if tensor.is_floating_point()
    ]
    amounts = {round(amount, 4) for found in moved for amount in found}
    assert amounts == {0.1}


def test_two_operations_a_step():
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(5)))
    average = WeightAverage(model, 0.9)
    with Operations() as operations:
        average.update()
    assert operations.names == ["aten::_foreach_lerp_", "aten::_foreach_copy_"]


def test_a_model_without_counters():
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    with Operations() as operations:
        average.update()
    assert operations.names == ["aten::_foreach_lerp_"]

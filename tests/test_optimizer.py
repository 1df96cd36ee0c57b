"""What a recipe does to the weights, step by step: its optimizer and its moving average."""

import copy
import dataclasses
import math

import pytest
import torch
from fakes import Operations, plain
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

import models
from models.convolutions import PointwiseConv2d
from training import optimizer as optimizers
from training.recipe import OPTIMIZERS

NO_MATRIX = ("baseline", "muon")  # it has no pointwise convolution as a matrix


@pytest.mark.parametrize(
    "name, optimizer",
    [(name, o) for name in models.names() for o in OPTIMIZERS if (name, o) != NO_MATRIX],
)
def test_weight_decay_shrinks_kernels_alone(name, optimizer):
    """A step with gradients of 0 moves what is decayed, and nothing else."""
    model = models.build(name)
    plan = plain(optimizer=optimizer, weight_decay=0.1, muon_weight_decay=0.1, nesterov=False)
    stepper = optimizers.build_optimizer(model, plan)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    stepper.step()
    for module_name, module in model.named_modules():
        for short, p in module.named_parameters(recurse=False):
            name = f"{module_name}.{short}"
            kernel = short == "weight" and not isinstance(module, nn.BatchNorm2d)
            expected = before[name] * (0.95 if kernel else 1)
            torch.testing.assert_close(p.detach(), expected, msg=name)


def test_optimizer_is_the_one_asked_for():
    model = nn.Linear(2, 2)
    sgd = optimizers.build_optimizer(model, plain(momentum=0.8))
    adamw = optimizers.build_optimizer(model, plain(optimizer="adamw"))
    assert isinstance(sgd, SGD) and isinstance(adamw, AdamW)
    assert [group["momentum"] for group in sgd.param_groups] == [0.8, 0.8]
    assert all(group["nesterov"] for group in sgd.param_groups)
    assert all(group["lr"] == 0.5 for group in (*sgd.param_groups, *adamw.param_groups))
    muon = optimizers.build_optimizer(pointwise_network(), plain(optimizer="muon", momentum=0.8))
    assert [group["momentum"] for group in muon.param_groups] == [0.8] * 3


def pointwise_network():
    torch.manual_seed(0)
    return nn.Sequential(PointwiseConv2d(3, 4, bias=True), nn.Flatten(), nn.Linear(16, 10))


def step(optimizer, model, seed):
    """One step with random gradients that only `seed` decides."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def test_muon_moves_matrices_along_all_directions_and_the_rest_as_sgd_does():
    plan = plain(optimizer="muon", learning_rate=0.1, momentum=0.0)
    networks = {name: pointwise_network() for name in ("muon", "sgd")}
    for name, model in networks.items():
        step(optimizers.build_optimizer(model, dataclasses.replace(plan, optimizer=name)), model, 1)
    start, muon, sgd = (
        dict(model.named_parameters()) for model in (pointwise_network(), *networks.values())
    )
    for name in start.keys() - {"0.weight"}:
        assert torch.equal(muon[name], sgd[name]) and not torch.equal(muon[name], start[name])
    singular_values = torch.linalg.svdvals(muon["0.weight"] - start["0.weight"])
    # 0.1, up to Newton and Schulz's rough convergence, and a factor for matrices that are no square
    assert 0.06 < singular_values.min() and singular_values.max() < 0.14


def test_muon_goes_on_after_a_checkpoint_where_it_was():
    plan = plain(optimizer="muon", momentum=0.9, weight_decay=0.1, muon_weight_decay=0.1)
    model = pointwise_network()
    optimizer = optimizers.build_optimizer(model, plan)
    step(optimizer, model, 1)
    other = pointwise_network()
    other.load_state_dict(model.state_dict())
    resumed = optimizers.build_optimizer(other, plan)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (2, 3):
        for one, network in ((optimizer, model), (resumed, other)):
            for group in one.param_groups:
                group["lr"] = 0.1 * seed  # reaches the optimizers within
            step(one, network, seed)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_no_momentum_is_possible():
    model = pointwise_network()
    before = [p.detach().clone() for p in model.parameters()]
    step(optimizers.build_optimizer(model, plain(momentum=0.0)), model, 1)
    for p, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.5 * p.grad)


# ------------------------------------------------------------------------------- mixed precision


def scaled_step(scaler, optimizer, scheduler, model, seed, factor=1.0):
    """A step whose gradients are those of `step`, times `factor`, as mixed precision scales them.
    On a CPU the scale is known without a wait; the loss is a stand-in that brings it about."""
    scale = scaler.scale(torch.ones(()))
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = factor * scale * torch.randn(p.shape, generator=generator)
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.filterwarnings("error")
def test_a_step_with_infinite_gradients_is_skipped_even_the_first(kind):
    """The skipped ones leave no trace but a smaller scale: neither in the weights nor in a warning
    about the order of optimizer and scheduler."""
    plan = plain(optimizer=kind, weight_decay=0.1, muon_weight_decay=0.1)
    model, other = pointwise_network(), pointwise_network()
    optimizer, unscaled = (optimizers.build_optimizer(m, plan) for m in (model, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    start = copy.deepcopy(model.state_dict())
    for factor in (math.inf, math.nan):
        scaled_step(scaler, optimizer, scheduler, model, 1, factor)
        assert all(torch.equal(model.state_dict()[name], start[name]) for name in start)
    assert scaler.get_scale() == 256.0
    for seed in (1, 2):
        scaled_step(scaler, optimizer, scheduler, model, seed)
        step(unscaled, other, seed)
    scaled_step(scaler, optimizer, scheduler, model, 3, math.inf)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_scaling_reads_nothing_from_the_device(kind):
    model = pointwise_network()
    optimizer = optimizers.build_optimizer(model, plain(optimizer=kind))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    scaled_step(scaler, optimizer, scheduler, model, 1)
    with Operations() as operations:
        scaled_step(scaler, optimizer, scheduler, model, 2)
    assert "aten::_local_scalar_dense" not in operations.names

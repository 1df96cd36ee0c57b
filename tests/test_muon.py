"""Muon in batches, held against PyTorch's, which takes one matrix after another."""

import pytest
import torch
from torch import nn

from training import muon as muons
from training.muon import Muon, make_layout, orthogonalized

SHAPES = [(16, 16), (8, 24), (24, 8), (16, 16), (24, 8), (5, 7)]


def matrices(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer, parameters, count=4):
    """Steps along random gradients, the same for every optimizer, at a rate that changes."""
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.95])
def test_the_same_numbers_and_state_as_pytorchs(momentum):
    ours, theirs = matrices(SHAPES), matrices(SHAPES)
    muon = Muon(ours, lr=0.1, momentum=momentum, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.1, momentum=momentum, weight_decay=0.1)
    take_steps(muon, ours)
    take_steps(other, theirs)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=1e-6)
        assert muon.state[p].keys() == other.state[q].keys() == {"momentum_buffer"}
        buffers = (o.state[x]["momentum_buffer"] for o, x in ((muon, p), (other, q)))
        torch.testing.assert_close(*buffers, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows, columns", [(12, 12), (6, 10), (10, 6)])
def test_a_stack_is_so_many_matrices(rows, columns):
    (stack,) = matrices([(2, rows, columns)])
    apart = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    together, each = (Muon(p, lr=0.1, weight_decay=0.1) for p in ([stack], apart))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        stack.grad = torch.randn(stack.shape, generator=generator)
        for p, gradient in zip(apart, stack.grad.clone(), strict=True):
            p.grad = gradient
        together.step()
        each.step()
    torch.testing.assert_close(stack.detach(), torch.stack(apart).detach(), atol=1e-6, rtol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    moved, left = matrices([(4, 4), (4, 4)])
    before = left.detach().clone()
    muon = Muon([moved, left], lr=0.1, weight_decay=0.1)
    moved.grad = torch.ones_like(moved)
    muon.step()
    assert torch.equal(left, before) and left not in muon.state


def test_a_few_operations_whatever_the_number_of_matrices():
    """Launches are what a GPU waits for."""

    def operations(count):
        parameters = matrices([(8, 8)] * count)
        muon = Muon(parameters, lr=0.1)
        take_steps(muon, parameters, count=1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            muon.step()
        products = {"aten::bmm", "aten::baddbmm"}
        return sum(event.count for event in profiler.key_averages() if event.key in products)

    assert operations(20) == operations(1) <= 15


def test_zeros_that_fill_a_batch_change_nothing(monkeypatch):
    """On a GPU all matrices make one batch: here in float64, where rounding hides no difference."""
    monkeypatch.setattr(muons, "DTYPE", torch.float64)
    shapes = [torch.Size(shape) for shape in (*SHAPES, (2, 6, 10), (2, 10, 6))]
    updates = [m.detach() for m in matrices(shapes)]
    apart, together = (make_layout(shapes, torch.device("cpu"), together=t) for t in (False, True))
    assert together.shapes == [(10, 16, 24)] and len(apart.shapes) == 4
    for one, other in zip(*(orthogonalized(updates, o) for o in (apart, together)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)

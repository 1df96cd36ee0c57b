"""The CUDA path without a GPU: a whole training step on fake tensors."""

import pytest
import torch
from torch import nn

import models
from benchmarks import fake_cuda
from benchmarks.fake_cuda import BATCH
from training import devices, engine

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="CUDA_VISIBLE_DEVICES= pytest tests/test_cuda.py runs it"
)
NETWORKS = ("under100k", "baseline")  # the smaller ones are the first with other sizes
PRECISIONS = list(devices.PRECISIONS)
LAUNCHES = {
    "fp32": 339,
    "bf16": 360,
    "fp16": 371,
}  # counted without a graph
REPLAYED = {"fp32": 52, "bf16": 54, "fp16": 62}  # with one


@pytest.fixture(scope="module")
def steps():
    """The last of three steps of each network in each precision: by then all is in place."""
    return {
        (model, precision): fake_cuda.last_step(model, precision)
        for model in NETWORKS
        for precision in PRECISIONS
    }


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", NETWORKS)
def test_a_step_never_waits_for_the_device(steps, model, precision):
    assert not steps[model, precision].waits


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_default_network_stays_in_channels_last(steps, precision):
    """All that has the shape of a batch of square maps, forwards and backwards."""
    maps = [
        (part, name, tensor)
        for part, name, tensor in steps["under100k", precision].outputs
        if part in ("forward", "backward") and tensor.ndim == 4 and len(tensor) == BATCH
        if min(tensor.shape[1:]) > 1 and tensor.shape[2] == tensor.shape[3]
    ]
    assert len(maps) > 100
    left = {
        (part, name, tuple(tensor.shape))
        for part, name, tensor in maps
        if not tensor.is_contiguous(memory_format=torch.channels_last)
    }
    assert not left


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_default_network_computes_in_the_precision_asked_for(steps, precision):
    convolutions = [
        tensor.dtype
        for part, name, tensor in steps["under100k", precision].outputs
        if part == "forward" and name == "convolution" and tensor.ndim == 4
    ]
    assert len(convolutions) > 30 and set(convolutions) == {devices.PRECISIONS[precision]}


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_launches_a_step(steps, precision):
    launches = steps["under100k", precision].launches
    assert launches.keys() >= {"forward", "loss", "backward", "optimizer", "EMA", "metrics"}
    assert launches["augmentation"] <= 16 and launches.total() <= LAUNCHES[precision], launches
    assert steps["under100k", precision].launches_with_a_graph <= REPLAYED[precision], launches


def test_the_count_of_launches_says_how_to_hide_a_gpu(program, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    status, out, err = program("benchmarks/launches.py")
    assert (status, out) == (2, "") and err.startswith("launches.py: error: hide the GPU")


def test_a_wait_and_a_tensor_on_the_wrong_device_are_seen():
    """What the tests above would say of mistakes, made here on purpose."""
    with fake_cuda.fake_cuda() as watch:
        on_device = torch.ones(4, device="cuda")
        assert not watch.step.waits
        on_device.sum().item()
        on_device.cpu()
        torch.ones(4).to("cuda")
        assert dict(watch.step.waits) == {"_local_scalar_dense": 1, "_to_copy": 2}
        with pytest.raises(RuntimeError, match="device"):
            on_device + torch.ones(4)


def test_a_layer_that_leaves_channels_last_is_seen():
    with fake_cuda.fake_cuda() as watch:
        x = torch.ones(BATCH, 4, 8, 8, device="cuda").to(memory_format=torch.channels_last)
        watch.step = fake_cuda.Step()
        (x + 1).contiguous()
        shapes = [t for _, _, t in watch.step.outputs if t.ndim == 4]
        assert not all(t.is_contiguous(memory_format=torch.channels_last) for t in shapes)


def test_backward_node_by_node_is_backward():
    """The counting walks the graph by itself: here with numbers, against PyTorch's engine."""
    torch.manual_seed(0)
    model = models.build("under100k").double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(model(images), labels).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    fake_cuda.backward(nn.functional.cross_entropy(model(images), labels))
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_evaluation_on_cuda(precision):
    """Of a split it reads logits and labels once each."""
    with fake_cuda.fake_cuda() as watch:
        run, loader = fake_cuda.fake_run("under100k", precision)
        batches = [(images, labels.argmax(1)) for images, labels in loader]
        watch.step = fake_cuda.Step()
        evaluation = engine.evaluate(run.eval_model, batches, precision=run.precision)
        assert evaluation.logits.shape == (3 * BATCH, 10)
        assert watch.step.waits.total() == 2, watch.step.waits

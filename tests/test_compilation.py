"""Both sizes of batch are compiled or recorded before the clock runs, and nothing else changes."""

import copy
import dataclasses
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from fakes import noise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from training import compilation, engine, epochs
from training.epochs import take_steps
from training.interruption import Interruption
from training.recipe import RECIPES
from training.run import build_loader, build_run
from training.settings import Settings
from utils import RunError

CPU = torch.device("cpu")


def fresh_run(model="baseline", device=CPU, precision="fp32"):
    """A network, by default the one that has dropout, and batches of 4, 4 and 2."""
    recipe = dataclasses.replace(RECIPES[model], batch_size=4)
    config = models.config_dict(model)
    settings = Settings(model, config, recipe, "noise", "none", precision, seed=0)
    torch.manual_seed(0)
    loader = build_loader(settings, noise(10), device, train=True)
    return build_run(settings, device, len(loader)), loader


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: keeps every operation, and repeats it on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """A CPU that takes CUDA graphs."""
    monkeypatch.setattr(compilation, "takes_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda tape: tape)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


@pytest.fixture
def compiled(monkeypatch):
    """What torch.compile is asked for, and then the shape of each batch that it sees."""
    seen = []

    def stand_in(module, **options):
        seen.append(options)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))

    monkeypatch.setattr(nn.Module, "compile", stand_in)
    return seen


def test_both_sizes_of_batch_are_compiled_and_the_run_is_as_before(compiled):
    run, loader = fresh_run()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    random = torch.get_rng_state()
    compilation.prepare(run, loader, compile=True)
    assert compiled == [{"dynamic": False}, 4, 2]
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in run.model.parameters())
    assert (run.batch, run.seconds, run.metrics.total) == (0, 0.0, 0)


def test_nothing_to_prepare(compiled):
    run, loader = fresh_run()
    compilation.prepare(run, loader)
    assert not compiled and not run.recorded


def test_only_one_gpu_takes_graphs(monkeypatch):
    assert compilation.takes_graphs(torch.device("cuda", 1))
    assert not compilation.takes_graphs(CPU)
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun's one process has hooks on its gradients, too
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert not compilation.takes_graphs(torch.device("cuda"))


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"compile": True}, r"cannot be compiled here \(Cannot find a triton.\)$"),
        ({}, r"cannot be recorded as a CUDA graph \(Cannot find a triton.\): pass --no-graph$"),
    ],
)
def test_what_cannot_be_prepared_is_refused(graphs, compiled, monkeypatch, flags, said):
    def fail(*args):
        raise RuntimeError("Cannot find a triton.\nMore of it")

    run, loader = fresh_run()
    monkeypatch.setattr(run.model, "forward", fail)
    with pytest.raises(RunError, match=said):
        compilation.prepare(run, loader, **flags)


def test_a_python_that_cannot_compile_is_refused(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    run, loader = fresh_run()
    monkeypatch.setattr(run.model, "compile", refuse)
    with pytest.raises(RunError, match="cannot be compiled here .torch.compile is not supported"):
        compilation.prepare(run, loader, compile=True)


def test_a_lack_of_memory_is_no_fault_of_the_network(graphs, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run, loader = fresh_run()
    monkeypatch.setattr(run.model, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        compilation.prepare(run, loader)


def test_no_graph(graphs):
    run, loader = fresh_run()
    compilation.prepare(run, loader, graph=False)
    assert not run.recorded


def train(run, loader, end=2):
    """To the end of that epoch; returns the loss of each step, and all tensors of the networks."""
    losses = []
    torch.manual_seed(1)
    for epoch in range(run.epoch, end):
        loader.set_epoch(epoch)
        take_steps(run, loader, run.metrics, after_step=lambda loss: losses.append(loss.item()))
    averages = {} if run.ema is None else run.ema.module.state_dict()
    return losses, [*run.model.state_dict().values(), *averages.values()]


def replays(run):
    """How often a step has replayed the passes of each size of batch."""
    return [passes._graph.replays for passes in run.recorded.values()]


@pytest.mark.parametrize("model", ["baseline", "under25k"])
def test_recorded_passes_train_as_the_passes_themselves(graphs, model):
    """To the last bit, with dropout in one network and mirrored kernels in the other."""
    run, loader = fresh_run(model)
    losses, tensors = train(run, loader)
    again, loader = fresh_run(model)
    compilation.prepare(again, loader)
    assert [images[0] for images, _ in again.recorded] == [4, 2]
    recorded_losses, recorded_tensors = train(again, loader)
    assert replays(again) == [4, 2]
    assert recorded_losses == losses and len(set(losses)) == 6
    assert again.metrics.compute() == run.metrics.compute()
    for one, other in zip(tensors, recorded_tensors, strict=True):
        assert torch.equal(one, other)


def test_a_resumed_training_replays_too(graphs):
    """Weights and the state of the optimizer are loaded into the memory that the graph reads."""
    run, loader = fresh_run("under25k")
    compilation.prepare(run, loader)
    train(run, loader, 1)
    run.epoch, run.metrics, run.batch = 1, engine.RunningMetrics(CPU), 0
    run.history.append({})
    saved = {**run.released(), "training": run.training_state()}
    saved = copy.deepcopy(saved)
    expected = train(run, loader, 2)
    again, loader = fresh_run("under25k")
    compilation.prepare(again, loader)
    again.load(saved)
    losses, tensors = train(again, loader, 2)
    assert replays(again) == [2, 1]
    assert losses == expected[0]
    for one, other in zip(tensors, expected[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_graph_trains_as_the_passes_themselves(precision):
    device, trained = torch.device("cuda"), []
    for graph in (True, False):
        run, loader = fresh_run("under25k", device, precision)
        compilation.prepare(run, loader, graph=graph)
        assert bool(run.recorded) == graph
        trained.append(train(run, loader))
    assert trained[0][0] == trained[1][0]
    for one, other in zip(trained[0][1], trained[1][1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_fp16_scales_its_loss(precision):
    run, _ = fresh_run(precision=precision)
    assert run.scaler.is_enabled() == (precision == "fp16")


def test_an_evaluation_runs_the_network_as_it_is():
    """Compiling it, too, would take longer than it saves."""
    run, loader = fresh_run()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    run.model.compile(backend=backend, dynamic=False)
    with Interruption() as interruption:
        evaluation = epochs.evaluate(run, loader, interruption)
    assert evaluation.logits.shape == (10, 10) and not compiled
    run.model(torch.zeros(1, 3, 32, 32))
    assert compiled

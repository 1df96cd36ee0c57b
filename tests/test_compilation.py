"""--compile: both sizes of batch are compiled before the clock runs, and nothing else changes."""

import dataclasses

import pytest
import torch
from torch import nn

import data
import models
from training import compilation, epochs
from training.interruption import Interruption
from training.recipe import RECIPES
from training.run import build_loader, build_run
from training.settings import Settings
from utils import RunError

CPU = torch.device("cpu")


def fresh_run():
    """The baseline, which has dropout and BatchNorm, on batches of 4, 4 and 2."""
    recipe = dataclasses.replace(RECIPES["baseline"], batch_size=4)
    config = models.config_dict("baseline")
    settings = Settings("baseline", config, recipe, "noise", "none", "fp32", seed=0)
    pixels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
    split = data.Split(pixels, torch.arange(10) % 10, "train", "noise")
    loader = build_loader(settings, split, CPU, train=True)
    return build_run(settings, CPU, len(loader)), loader


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
    compilation.compile_network(run, loader)
    assert compiled == [{"dynamic": False, "mode": "default"}, 4, 4, 4, 2, 2, 2]
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in run.model.parameters())
    assert (run.batch, run.seconds, run.metrics.total) == (0, 0.0, 0)


def test_one_gpu_takes_cuda_graphs(compiled, monkeypatch):
    run, loader = fresh_run()
    run.device = torch.device("cuda")
    monkeypatch.setattr(compilation, "pass_through", lambda *args: None)
    monkeypatch.setattr(compilation.devices, "random_state", lambda device: {})
    monkeypatch.setattr(compilation.devices, "set_random_state", lambda state, device: None)
    compilation.compile_network(run, loader)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    compilation.compile_network(run, loader)
    assert [options["mode"] for options in compiled] == ["reduce-overhead", "default"]


def test_what_cannot_be_compiled_is_refused(compiled, monkeypatch):
    def fail(*args):
        raise RuntimeError("Cannot find a working triton installation.\nMore of it")

    run, loader = fresh_run()
    monkeypatch.setattr(compilation, "pass_through", fail)
    with pytest.raises(RunError, match=r"\(Cannot find a working triton installation.\)$"):
        compilation.compile_network(run, loader)


def test_an_evaluation_runs_the_network_as_it_is():
    """A CUDA graph would overwrite the logits of the batch before."""
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

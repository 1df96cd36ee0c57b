"""Averaging checkpoints: the mean of the weights, with statistics that were measured anew."""

from collections import defaultdict
from itertools import islice

import pytest
import torch
from fakes import released
from torch import nn

import data
import models
from experiments import average
from training import checkpoint as checkpoints

NAME = models.names()[0]


@pytest.fixture
def another(network, tmp_path):
    """A second file: other weights of the same network."""
    state = {
        name: tensor + 0.1 if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path / "another.safetensors"
    checkpoints.save_checkpoint(path, released(NAME, state))
    return path


def test_the_weights_are_the_mean_and_the_statistics_those_of_the_mean(
    network, weights, another, tmp_path, monkeypatch
):
    monkeypatch.setattr(average, "BATCHES", 2)
    monkeypatch.setattr(average, "BATCH_SIZE", 100)
    output = tmp_path / "mean.safetensors"
    average.main([str(weights), str(another), "--output", str(output)])
    found = checkpoints.load_checkpoint(output)
    assert "training" not in found
    mean = checkpoints.rebuild(found, output)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(mean.get_parameter(name), parameter + 0.05)

    loader = data.Loader(
        data.load("sample", "", "train"),
        100,
        mean=data.MEAN,
        std=data.STD,
        augmentation=data.Augmentation(crop_padding=4, flip="random"),
        shuffle=True,
    )
    norms = [module for module in mean.modules() if isinstance(module, nn.BatchNorm2d)]
    measured = [norm.running_mean.clone() for norm in norms]
    seen = defaultdict(list)  # the mean of what came into each norm, by batch
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, x: seen[norm].append(x[0].mean((0, 2, 3))))
    with torch.no_grad():
        for images, _ in islice(loader, 2):
            mean.train()(images)
    for norm, expected in zip(norms, measured, strict=True):
        # PyTorch's BatchNorm adds up 100,000 numbers in float32.
        torch.testing.assert_close(torch.stack(seen[norm]).mean(0), expected, rtol=1e-3, atol=1e-3)


def test_files_must_be_of_one_network_and_the_same_images(network, weights, tmp_path, refused):
    seen = {"source": "sample", "train_split": "train+val", "eval_split": "val"}
    path = tmp_path / "other.safetensors"
    checkpoints.save_checkpoint(path, released(NAME, network.state_dict(), data=seen))
    output = tmp_path / "mean.safetensors"
    line = refused("experiments/average.py", weights, path, "--output", output)
    assert line.endswith("differ in their data") and not output.exists()
    small = models.build("under25k").state_dict()
    checkpoints.save_checkpoint(path, released("under25k", small))
    line = refused("experiments/average.py", weights, path, "--output", output)
    assert line.endswith("differ in their model") and not output.exists()

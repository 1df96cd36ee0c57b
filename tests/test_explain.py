"""Grad-CAM against class activation maps, the gates against what attention does."""

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models import explain
from models.blocks import EfficientChannelAttention


class AverageHead(nn.Module):
    """A convolution, an operation in place on its output, global averages, a linear layer: of such
    a network Grad-CAM is the class activation map (Zhou et al. 2016, arXiv:1512.04150)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x), inplace=True).mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_grad_cam_is_the_class_activation_map_where_that_exists(images):
    torch.manual_seed(0)
    model = AverageHead().train()
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    maps = explain.grad_cam(model, images, classes)
    with torch.no_grad():
        features = model.conv(images)
        # The slope of the ReLU after the features is part of the gradient.
        slopes = (features > 0).float().mean((2, 3))
        weights = model.fc.weight[classes] * slopes
        expected = torch.einsum("nc,nchw->nhw", weights, features).relu()
        torch.testing.assert_close(maps, expected / expected.amax((1, 2), keepdim=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.conv._forward_hooks


def test_an_image_with_nothing_for_the_class_has_an_empty_map(images):
    model = AverageHead()
    nn.init.constant_(model.fc.weight, -1.0)
    nn.init.constant_(model.conv.weight, 0.0)
    nn.init.constant_(model.conv.bias, 1.0)
    maps = explain.grad_cam(model, images, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(maps, torch.zeros(6, 16, 16))


@pytest.mark.parametrize("name, size", [("under100k", 16), ("baseline", 15)])
def test_both_networks_are_explained_on_half_the_scale(name, size, images):
    model = models.build(name)
    with torch.inference_mode():  # which Grad-CAM has to leave
        classes = model.eval()(images).argmax(1)
    maps = explain.grad_cam(model, images, classes)
    assert maps.shape == (6, size, size) and maps.min() >= 0 and maps.max() == 1
    with pytest.raises(ValueError, match="no features of 33 pixels"):
        explain.grad_cam(model, images, classes, least_size=33)


def test_gates_are_what_attention_multiplies_with(network, images):
    gates = explain.attention_gates(network, images)
    attentions = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, EfficientChannelAttention)
    }
    assert attentions and gates.keys() == attentions.keys()
    seen = {}
    for name, module in attentions.items():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    with torch.no_grad():
        network(images)
    for name, module in attentions.items():
        before, after = seen[name]
        torch.testing.assert_close(before * gates[name][:, :, None, None], after)
        module._forward_hooks.clear()


def test_a_network_without_attention_has_no_gates(images):
    assert explain.attention_gates(models.build("baseline"), images) == {}


@pytest.mark.slow
def test_test_py_draws_what_the_network_looks_at(weights, program, tmp_path):
    arguments = ["--checkpoint", weights, "--output", tmp_path, "--device", "cpu", "--explain"]
    status, _, err = program("test.py", *arguments, 2)
    assert status == 0, err
    figure = matplotlib.image.imread(tmp_path / "explanations.png")
    assert figure.shape[1] == 1260 and figure[..., :3].std() > 0


def test_modules_are_named_in_words():
    model = models.build("under100k", depths=(1, 3, 2, 1))
    for name, words in (
        ("near.0.norm", "block 1 of stage near"),
        ("near.2.attention", "last block of stage near"),
        ("hourglass.body.0.attention", "block of stage hourglass"),
        ("widest.0.convolution.pwconv", "block of stage widest"),
        ("fc", "fc"),
    ):
        assert explain.describe_location(model, name) == words


@pytest.mark.parametrize("config", [{}, {"mirror": False}])
def test_class_activation_maps_have_the_logits_as_their_means(config):
    torch.manual_seed(0)
    network = models.build("under100k", **config).eval()
    with torch.no_grad():
        features = network.forward_features(torch.randn(3, 3, 32, 32))
        maps = explain.class_activation_maps(network.fc, features)
        logits = maps.mean((2, 3)) + network.fc.bias
        torch.testing.assert_close(logits, network.forward_head(features), atol=1e-4, rtol=0)
    assert maps.shape == (3, 10, 16, 16)

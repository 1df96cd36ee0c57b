"""Mirror symmetry: every layer commutes with the mirror, and the logits do not see it."""

import copy

import pytest
import torch
from fakes import exercise
from torch._subclasses.fake_tensor import FakeTensorMode

import models
from models import blocks, convolutions, mirror

C = 16  # channels
SWITCHES = ("separable", "dilated", "transposed", "unshuffle", "attention")


def mirrored(x):
    """Each map flipped left to right, the halves of the channels exchanged."""
    return x.flip(3).roll(x.shape[1] // 2, 1)


LAYERS = {
    "norm": lambda: blocks.batch_norm(C, mirror=True),
    "depthwise": lambda: convolutions.DepthwiseConv2d(C, 1, mirror=True),
    "dilated": lambda: convolutions.DepthwiseConv2d(C, 2, mirror=True),
    "pointwise": lambda: convolutions.PointwiseConv2d(C, 24, bias=True, mirror=True),
    "grouped": lambda: convolutions.PointwiseConv2d(C, 24, groups=4, mirror=True),
    "dense": lambda: convolutions.DenseConv2d(C, 24, mirror=True),
    "unshuffle": lambda: blocks.UnshuffleDown(C, 24, mirror=True),
    "unshuffle in groups": lambda: blocks.UnshuffleDown(C, 24, groups=4, mirror=True),
    "max pool": lambda: blocks.MaxPoolDown(C, 24, mirror=True),
    "transposed": lambda: blocks.TransposedUp(C, 24, groups=4, mirror=True),
    "nearest": lambda: blocks.NearestUp(C, 24, groups=4, mirror=True),
    "attention": lambda: blocks.EfficientChannelAttention(mirror=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_commutes_with_the_mirror(name):
    torch.manual_seed(0)
    layer = exercise(LAYERS[name]()).double()
    x = torch.randn(2, C, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(layer(mirrored(x)), mirrored(y))
    assert not torch.allclose(y, mirrored(y))  # which would say nothing


def test_the_first_layer_turns_the_mirror_into_an_exchange_of_halves():
    torch.manual_seed(0)
    stem = convolutions.DenseConv2d(3, C, mirror=True, halves=False)
    x = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(stem(x.flip(3)), mirrored(stem(x)))


@pytest.mark.parametrize(
    "name, config",
    [
        *(
            pytest.param("under100k", config, marks=pytest.mark.slow)
            for config in ({}, *({switch: False} for switch in SWITCHES))
        ),
        *((name, {}) for name in ("under50k", "under25k", "teacher")),
    ],
)
def test_an_image_and_its_mirror_image_have_the_same_logits(name, config):
    torch.manual_seed(0)
    network = exercise(models.build(name, **config)).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        logits = network(x)
        torch.testing.assert_close(network(x.flip(3)), logits)
    assert logits.std(0).mean() > 1e-3


def test_a_network_without_the_switch_sees_the_mirror():
    torch.manual_seed(0)
    network = exercise(models.build("under100k", mirror=False)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(network(x.flip(3)), network(x), atol=1e-3)


def test_even_and_odd_parts_are_the_matrix_in_the_basis_of_sums_and_differences():
    torch.manual_seed(0)
    parts = torch.randn(2, 3, 5, dtype=torch.float64)
    whole = mirror.even_and_odd(parts[None])[0]

    def basis(n):
        eye = torch.eye(n, dtype=torch.float64)
        return torch.cat([torch.cat([eye, eye], 1), torch.cat([eye, -eye], 1)]) / 2**0.5

    in_basis = basis(3) @ whole @ basis(5).T
    torch.testing.assert_close(in_basis, torch.block_diag(*parts))


def test_put_together_gives_the_same_tensors_and_gradients_and_forgets_them():
    torch.manual_seed(0)
    together = models.build("under100k").double().train()
    alone = copy.deepcopy(together)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    together(x).square().sum().backward()
    alone_features = alone.stem(x)
    for stage in ("fine", "down", "near", "hourglass", "wide", "widest"):
        alone_features = getattr(alone, stage)(alone_features)
    alone.fc(blocks.global_average(alone_features, 2)).square().sum().backward()
    pairs = zip(together.named_parameters(), alone.parameters(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert not any(m.complete for m in together.modules() if isinstance(m, mirror.TiedModule))


def test_put_together_is_as_many_operations_whatever_the_number_of_layers():
    """Launches are what a GPU waits for."""

    def operations(depths):
        network = models.build("under100k", depths=depths).train()
        network.to(memory_format=torch.channels_last)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            with network.tied_tensors.assembled():
                pass
        launched = {"cat", "index_select", "mul", "sum", "_foreach_add_", "flip", "stack", "clone"}
        counts = {
            event.key.removeprefix("aten::"): event.count for event in profiler.key_averages()
        }
        return sum(counts.get(name, 0) for name in launched)

    assert operations((1, 1, 1, 1)) == operations((5, 2, 2, 2)) <= 5


def test_tensors_put_together_are_kernels_in_channels_last_and_the_precision_of_autocast():
    network = models.build("under100k").train()
    counted = network.stem[1].num_batches_tracked
    with torch.autocast("cpu", torch.bfloat16), network.tied_tensors.assembled():
        assert network.stem[0].tied("weight").is_contiguous(memory_format=torch.channels_last)
        convolution = network.fine[0].convolution
        for layer, name in ((convolution.dwconv, "weight"), (convolution.pwconv, "bias")):
            assert layer.tied(name).dtype == torch.bfloat16
        assert convolution.norm.tied("weight").dtype == torch.float32
    assert counted == 1
    with network.eval().tied_tensors.assembled():
        pass
    assert counted == 1 and network.near[0].norm.num_batches_tracked == 1


def test_an_untied_network_computes_the_same_with_ordinary_norms():
    torch.manual_seed(0)
    network = exercise(models.build("under100k")).double()
    whole = mirror.untied(network)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(whole(x), network(x))
    assert not any(
        module.ties for module in whole.modules() if isinstance(module, mirror.TiedModule)
    )
    assert not any(isinstance(module, mirror.MirrorBatchNorm2d) for module in whole.modules())
    assert any(isinstance(module, mirror.MirrorBatchNorm2d) for module in network.modules())


def test_the_index_is_where_the_weights_are():
    """On a device that nobody has, with tensors that have no values."""
    with FakeTensorMode(), torch.device("cuda"):
        network = models.build("under25k")
        assert network(torch.ones(2, 3, 32, 32)).device.type == "cuda"


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_made_without_memory_works_once_its_weights_are_loaded(assign):
    with torch.device("meta"):
        loaded = models.build("under25k")
    torch.manual_seed(0)
    network = models.build("under25k").eval()
    if not assign:
        loaded.to_empty(device="cpu")
    loaded.load_state_dict(network.state_dict(), assign=assign)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), network(x))

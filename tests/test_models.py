"""The networks: their layers, their parameters, and that every part of them does work."""

import re

import pytest
import torch
import torch.nn.functional as F
from fakes import exercise
from torch import nn

import models
import utils
from models import ModelError, blocks, convolutions, mirror
from training import report

# A network that changes on purpose changes its line here.
PARAMETERS = {
    "under100k": 92_662,
    "under50k": 48_102,
    "under25k": 23_062,
    "baseline": 112_966,
    "teacher": 1_560_618,
}

# What each switch of the default network's config leaves out, as a question to a module.
OPERATIONS = {
    "separable": lambda module: isinstance(module, blocks.DepthwiseSeparableConv2d),
    "dilated": lambda module: isinstance(module, nn.Conv2d) and module.dilation > (1, 1),
    "transposed": lambda module: isinstance(module, nn.ConvTranspose2d),
    "unshuffle": lambda module: isinstance(module, blocks.UnshuffleConv2d),
    "attention": lambda module: isinstance(module, blocks.EfficientChannelAttention),
    "mirror": lambda module: isinstance(module, mirror.TiedModule) and bool(module.ties),
}

# torchsummary's table of the notebook's network: name, output shape, parameters.
BASELINE_ROWS = """
    Conv2d-1            [-1, 10, 32, 32]  280
    ReLU-2              [-1, 10, 32, 32]  0
    BatchNorm2d-3       [-1, 10, 32, 32]  20
    Dropout-4           [-1, 10, 32, 32]  0
    Conv2d-5            [-1, 16, 30, 30]  4,016
    ReLU-6              [-1, 16, 30, 30]  0
    BatchNorm2d-7       [-1, 16, 30, 30]  32
    Dropout-8           [-1, 16, 30, 30]  0
    MaxPool2d-9         [-1, 16, 15, 15]  0
    Conv2d-10           [-1, 32, 15, 15]  544
    Conv2d-11           [-1, 32, 15, 15]  9,248
    ReLU-12             [-1, 32, 15, 15]  0
    BatchNorm2d-13      [-1, 32, 15, 15]  64
    Dropout-14          [-1, 32, 15, 15]  0
    MaxPool2d-15        [-1, 32, 7, 7]    0
    Conv2d-16           [-1, 64, 5, 5]    18,496
    Conv2d-17           [-1, 64, 5, 5]    36,928
    ReLU-18             [-1, 64, 5, 5]    0
    BatchNorm2d-19      [-1, 64, 5, 5]    128
    Dropout-20          [-1, 64, 5, 5]    0
    Conv2d-21           [-1, 64, 5, 5]    1,216
    Conv2d-22           [-1, 64, 5, 5]    4,160
    ReLU-23             [-1, 64, 5, 5]    0
    BatchNorm2d-24      [-1, 64, 5, 5]    128
    Dropout-25          [-1, 64, 5, 5]    0
    MaxPool2d-26        [-1, 64, 2, 2]    0
    Conv2d-27           [-1, 64, 2, 2]    36,928
    ReLU-28             [-1, 64, 2, 2]    0
    BatchNorm2d-29      [-1, 64, 2, 2]    128
    Dropout-30          [-1, 64, 2, 2]    0
    AdaptiveAvgPool2d-31  [-1, 64, 1, 1]  0
    Linear-32           [-1, 10]          650
"""
ROW = re.compile(r"^ *(\w+-\d+) +(\[[-\d, ]+\]) +([\d,]+)$", re.MULTILINE)


def images(n, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels(n):
    return torch.arange(n) % 10


def fresh(name, **config):
    torch.manual_seed(0)
    return models.build(name, **config)


def exercised(name, **config):
    return exercise(fresh(name, **config))


def of_class(model, operation):
    return [module for module in model.modules() if isinstance(module, operation)]


def uses_of(model, switch):
    return [module for module in model.modules() if OPERATIONS[switch](module)]


# ------------------------------------------------------------------------------------- registry


def test_names_with_the_default_first():
    assert models.names() == tuple(PARAMETERS)


@pytest.mark.parametrize("name", models.names())
def test_config_dict_rebuilds_the_network(name):
    model = exercised(name)
    config = models.config_dict(name)
    rebuilt = models.build(name, **config)
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images(2)), model(images(2)))


def test_config_dict_holds_what_was_chosen():
    config = models.config_dict("under100k", attention=False)
    assert config == {**models.config_dict("under100k"), "attention": False}


@pytest.mark.parametrize(
    "name, config, said",
    [
        ("resnet", {}, f"choose one of {', '.join(PARAMETERS)}"),
        ("baseline", {"attention": False}, "attention"),
        ("under100k", {"colour": 1, "attention": False}, "colour"),
    ],
)
def test_what_no_network_takes_is_refused(name, config, said):
    for function in (models.build, models.config_dict):
        with pytest.raises(ModelError, match=said):
            function(name, **config)


# --------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("name", models.names())
def test_parameter_count(name):
    assert utils.count_parameters(models.build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in models.names() if name.startswith("under")])
def test_a_network_named_after_a_limit_stays_below_it(name):
    assert utils.count_parameters(models.build(name)) < 1000 * int(name[5:-1])


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("n", [1, 4])
def test_one_logit_a_class_and_image(name, n):
    with torch.no_grad():
        logits = fresh(name).eval()(images(n))
    assert logits.shape == (n, 10) and logits.isfinite().all()


def test_baseline_is_the_notebooks_network_layer_for_layer():
    printed = report.summary("baseline", {})
    expected = [re.split(r" {2,}", line.strip()) for line in BASELINE_ROWS.strip().splitlines()]
    assert [list(row) for row in ROW.findall(printed)] == expected
    assert "Total params: 112,966\n" in printed


def test_baseline_has_the_notebooks_residual_sums_and_dropout():
    """Neither shows in torchsummary's table: the forward pass, written out, has them."""
    model = exercised("baseline")
    rates = [module.p for module in of_class(model, nn.Dropout)]
    assert rates == [0.1, 0.1, 0.2, 0.3, 0.3, 0.1]
    layers = [module for module in model.modules() if not list(module.children())]

    def through(x, first, last):
        """`x` through the table's layers `first` to `last`, which it counts from 1."""
        return nn.Sequential(*layers[first - 1 : last])(x)

    with torch.no_grad():
        conv10 = through(images(2), 1, 10)
        conv16 = through(conv10 + through(conv10, 11, 14), 15, 16)
        pool31 = through(conv16 + through(conv16, 17, 25), 26, 31)
        torch.testing.assert_close(through(pool31.flatten(1), 32, 32), model(images(2)))


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_gets_a_gradient(name):
    """After two steps: until then, scales of 0 keep gradients out of residual branches, and out of
    those within them."""
    model = fresh(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images(8)), labels(8)).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        optimizer.step()
    assert [name for name, g in gradients.items() if not g.any()] == []


@pytest.mark.parametrize("name", models.names())
def test_memory_format_does_not_change_the_logits(name):
    model = exercised(name)
    with torch.no_grad():
        expected = model(images(2))
        model = model.to(memory_format=torch.channels_last)
        logits = model(images(2).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", models.names())
def test_logits_do_not_depend_on_the_other_images(name):
    model = exercised(name)
    with torch.no_grad():
        together = model(images(4))
        alone = torch.cat([model(image[None]) for image in images(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", models.names())
def test_mixed_precision_gives_nearly_the_same(name):
    model = exercised(name).to(memory_format=torch.channels_last)
    x = images(4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x).float()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


# -------------------------------------------------------------------------- the six operations


@pytest.mark.parametrize("switch", OPERATIONS)
def test_each_operation_is_called_and_counts(switch):
    """Every module of its class is called, and noise on what it returns reaches the logits."""
    model = exercised("under100k")
    with torch.no_grad():
        expected = model(images(1))
    modules = uses_of(model, switch)
    assert modules
    for module in modules:
        calls = []

        def disturb(module, arguments, output, calls=calls):
            calls.append(module)
            return output + torch.randn_like(output)

        with module.register_forward_hook(disturb), torch.no_grad():
            logits = model(images(1))
        assert calls == [module]
        assert not torch.allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("switch", OPERATIONS)
def test_each_operation_can_be_left_out(switch):
    model = fresh("under100k", **{switch: False}).train()
    assert uses_of(model, switch) == []
    for other in OPERATIONS.keys() - {switch}:
        assert uses_of(model, other)
    logits = model(images(2))
    logits.sum().backward()
    assert logits.shape == (2, 10)
    assert all(p.grad is not None for p in model.parameters())


def test_all_operations_can_be_left_out_together():
    model = fresh("under100k", **dict.fromkeys(OPERATIONS, False))
    assert not any(uses_of(model, switch) for switch in OPERATIONS)
    assert model(images(2)).shape == (2, 10)


@pytest.mark.parametrize("separable", [True, False])
def test_dilation_is_left_out_of_every_convolution(separable):
    def dilations(**config):
        model = fresh("under100k", separable=separable, **config)
        return {module.dilation for module in of_class(model, nn.Conv2d)}

    assert dilations(dilated=False) == {(1, 1)}
    assert dilations(dilated=True) > {(1, 1)}


# ---------------------------------------------------------------------------------------- blocks


def by_definition(stage, x):
    """The stage's blocks, one after another, on the whole image."""
    for block in stage:
        x = block(x)
    return x


def compare_gradients(module, definition, x):
    """`module(x)` and `definition(x)` agree, and so do the gradients of everything they read."""
    results = []
    for function in (module, definition):
        inputs = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        module.zero_grad()
        y = function(inputs)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        (y * weights).sum().backward()
        results.append([y, inputs.grad, *(p.grad.clone() for p in module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 4, 7, 6)])  # the second in no even phases
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("convolution", [blocks.DepthwiseSeparableConv2d, blocks.OrdinaryConv2d])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_stage_by_phases_is_its_blocks_on_the_whole_image(
    shape, dilation, convolution, channels_last
):
    torch.manual_seed(0)
    channels = shape[1]
    members = [
        blocks.ResidualBlock(
            convolution(channels, 6, dilation), 6, channels, blocks.EfficientChannelAttention()
        )
        for _ in range(2)
    ]
    stage = blocks.Stage(dilation, *members).double().train()
    for member in stage:
        nn.init.ones_(member.norm.weight)
    x = torch.randn(shape, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    compare_gradients(stage, lambda x: by_definition(stage, x), x)


@pytest.mark.parametrize("groups", [1, 4])
def test_unshuffle_down_is_pixel_unshuffle_and_a_pointwise_convolution(groups):
    torch.manual_seed(0)
    block = blocks.UnshuffleDown(8, 12, groups=groups).double().train()
    x = torch.randn(2, 8, 6, 10, dtype=torch.float64)

    def definition(x):
        kernel = block.pwconv.weight[:, :, None, None]
        return block.norm(F.conv2d(F.pixel_unshuffle(x, 2), kernel, groups=groups))

    compare_gradients(block, definition, x)


def test_pointwise_convolution_is_an_ordinary_one_with_a_matrix():
    torch.manual_seed(0)
    block = blocks.PointwiseConv2d(6, 4, groups=2, bias=True)
    assert block.weight.shape == (4, 3)
    x = torch.randn(2, 6, 5, 3)
    expected = F.conv2d(x, block.weight.view(4, 3, 1, 1), block.bias, groups=2)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_dense_kernel_convolves_as_the_groups_do(transposed):
    x = torch.randn(2, 8, 6, 10, dtype=torch.float64)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    channels = (8, 3) if transposed else (12, 2)
    kernel = torch.randn(*channels, 2, 2, dtype=torch.float64)
    expected = convolve(x, kernel, stride=2, groups=4)
    torch.testing.assert_close(convolve(x, convolutions.dense(kernel, 4), stride=2), expected)


def test_phases_are_every_second_pixel():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    split = blocks.phases(x, 2)
    for index, (image, row, column) in enumerate(
        (image, row, column) for image in range(2) for row in range(2) for column in range(2)
    ):
        assert torch.equal(split[index], x[image, :, row::2, column::2])
    assert torch.equal(blocks.merge_phases(split, 2), x)


@pytest.mark.parametrize("down", [blocks.UnshuffleDown, blocks.MaxPoolDown])
def test_down_halves_height_and_width(down):
    assert down(8, 12, groups=4)(torch.randn(2, 8, 6, 10)).shape == (2, 12, 3, 5)


@pytest.mark.parametrize("up", [blocks.TransposedUp, blocks.NearestUp])
def test_up_doubles_height_and_width(up):
    assert up(8, 12, groups=4)(torch.randn(2, 8, 3, 5)).shape == (2, 12, 6, 10)


def test_unshuffle_down_loses_no_pixel():
    """A change of any one pixel changes the output, unlike with max pooling."""
    torch.manual_seed(0)
    block = blocks.UnshuffleDown(1, 16).eval()
    x = torch.rand(1, 1, 4, 4)
    with torch.no_grad():
        expected = block(x)
        for pixel in range(16):
            changed = x.clone()
            changed.view(-1)[pixel] += 1
            assert not torch.allclose(block(changed), expected)


def test_channel_attention_by_hand():
    torch.manual_seed(0)
    block = blocks.EfficientChannelAttention()
    x = torch.randn(2, 5, 4, 6)
    averages = [[0.0, *image.mean((1, 2)).tolist(), 0.0] for image in x]
    left, centre, right = block.conv.weight.flatten().tolist()
    with torch.no_grad():
        y = block(x)
    for i, a in enumerate(averages):
        for c in range(5):
            gate = torch.tensor(left * a[c] + centre * a[c + 1] + right * a[c + 2]).sigmoid()
            torch.testing.assert_close(y[i, c], x[i, c] * gate)


@pytest.mark.parametrize("convolution", [blocks.DepthwiseSeparableConv2d, blocks.OrdinaryConv2d])
def test_residual_block_starts_as_the_identity(convolution):
    block = blocks.ResidualBlock(convolution(8, 12, 1), 12, 8, None)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("up", [blocks.TransposedUp, blocks.NearestUp])
def test_hourglass_starts_as_the_identity_and_then_adds_its_branch(up):
    torch.manual_seed(0)
    down = blocks.UnshuffleDown(8, 4)
    block = blocks.Hourglass(down, nn.ReLU(), up(4, 8, groups=4)).eval()
    x = torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(block(x), x)
    nn.init.ones_(block.up.norm.weight)
    torch.testing.assert_close(block(x), x + block.up(down(x).relu()))
    assert not torch.allclose(block(x), x)


def test_separable_convolution_has_the_weights_of_its_two_parts():
    block = blocks.DepthwiseSeparableConv2d(16, 32, 1)
    kernels = sum(p.numel() for p in block.parameters() if p.ndim > 1)
    assert kernels == 9 * 16 + 16 * 32
    assert block(torch.randn(2, 16, 8, 8)).shape == (2, 32, 8, 8)

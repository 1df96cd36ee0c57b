"""The building blocks of the networks: one small module per idea.

All of them map (N, C, H, W) to (N, C', H', W') and keep the memory format of their input. A
convolution has a bias only if no BatchNorm follows. With `mirror` a layer commutes with mirroring
the image and swapping the halves of its channels, and has half the parameters: see mirror.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutions import (
    DenseConv2d,
    DepthwiseConv2d,
    PointwiseConv2d,
    TransposedConv2d,
    UnshuffleConv2d,
    merge_phases,
    phases,
)
from .mirror import MirrorBatchNorm2d


def batch_norm(channels: int, *, mirror: bool = False, zero: bool = False) -> nn.BatchNorm2d:
    """BatchNorm over `channels`; with `zero` its scale starts at 0.

    A residual branch that ends in a zero scale starts as the identity, so that a deep stack of them
    trains from the first step at a high learning rate (Goyal et al. 2017, arXiv:1706.02677).
    """
    norm = MirrorBatchNorm2d(channels) if mirror else nn.BatchNorm2d(channels)
    if zero:
        nn.init.zeros_(norm.weight)
    return norm


def global_average(x: Tensor, parts: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """(N, C, H, W) -> the mean of each channel, (N, C); with `parts` also the mean over that many
    equal parts of the channels, (N, C / parts). The result has `dtype`, by default that of `x`.

    On a CPU it is a product with a row of H * W equal weights: for channels_last tensors in half
    precision several times faster than a mean, forwards and backwards, with sums in float32.
    Elsewhere it is one mean operation.
    """
    with torch.autocast(x.device.type, enabled=False):
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H * W, C)
        if x.device.type != "cpu":
            return pixels.unflatten(2, (parts, -1)).mean((1, 2), dtype=dtype)
        count = pixels.shape[1]
        averages = (pixels.new_full((1, count), 1 / count) @ pixels).squeeze(1)
        averages = averages.unflatten(1, (parts, -1)).mean(1) if parts > 1 else averages
        return averages if dtype is None else averages.to(dtype)


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise 3x3, norm, pointwise 1x1 convolution (Howard et al. 2017, MobileNets,
    arXiv:1704.04861): 9 C + C C' weights instead of 9 C C'."""

    def __init__(
        self, channels: int, out_channels: int, dilation: int, *, mirror: bool = False
    ) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, dilation, mirror=mirror)
        self.norm = batch_norm(channels, mirror=mirror)
        self.pwconv = PointwiseConv2d(channels, out_channels, bias=True, mirror=mirror)

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        """As in DepthwiseConv2d."""
        return self.pwconv(self.norm(self.dwconv(x, step)))


class OrdinaryConv2d(nn.Module):
    """Ordinary 3x3 convolution and norm: what the depthwise-separable one replaces."""

    def __init__(
        self, channels: int, out_channels: int, dilation: int, *, mirror: bool = False
    ) -> None:
        super().__init__()
        self.conv = DenseConv2d(channels, out_channels, dilation, mirror=mirror)
        self.norm = batch_norm(out_channels, mirror=mirror)

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        """As in DepthwiseConv2d."""
        return self.norm(self.conv(x, step))


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention, ECA (Wang et al. 2020, arXiv:1910.03151): each channel is scaled
    by a sigmoid of a convolution over its neighbours' global averages. Three weights in all.

    With `mirror` its input is the mean of the two halves, and both get the same scales.
    """

    def __init__(self, *, mirror: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        self.mirror = mirror

    def _gate(self, x: Tensor, step: int) -> Tensor:
        """As `gate`, but with `mirror` only the first half of the channels, (N, C / 2, 1, 1)."""
        # A few thousand numbers: float32 costs nothing, and half precision is slow here on a CPU.
        averages = global_average(x, 2 if self.mirror else 1, self.conv.weight.dtype)
        if step > 1:
            averages = averages.unflatten(0, (-1, step**2)).mean(1)
        with torch.autocast(x.device.type, enabled=False):
            gate = self.conv(averages[:, None]).sigmoid()
        gate = gate.to(x.dtype).squeeze(1)[:, :, None, None]
        return gate.repeat_interleave(step**2, 0) if step > 1 else gate

    def gate(self, x: Tensor, step: int = 1) -> Tensor:
        """(N, C, H, W) -> the scale of each channel, (N, C, 1, 1), between 0 and 1.

        All `phases(..., step)` of an image get the same scales.
        """
        return self._gate(x, step).repeat(1, 2 if self.mirror else 1, 1, 1)

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        gate = self._gate(x, step)
        if not self.mirror:
            return x * gate
        return (x.unflatten(1, (2, -1)) * gate[:, None]).flatten(1, 2)


class ResidualBlock(nn.Module):
    """x + attention(norm(project(relu(convolution(x))))).

    No activation follows the sum: the residual stream stays linear, as between the bottlenecks of
    MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381). With a depthwise-separable convolution the
    layers have the order of ConvNeXt (Liu et al. 2022, arXiv:2201.03545): one activation, between
    two pointwise layers.

    Args:
        convolution: (N, channels, H, W) -> (N, hidden, H, W).
        attention: keeps the shape; both also take the `step` of their input's phases.
    """

    def __init__(
        self,
        convolution: nn.Module,
        hidden: int,
        channels: int,
        attention: nn.Module | None,
        *,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.project = PointwiseConv2d(hidden, channels, mirror=mirror)
        self.norm = batch_norm(channels, mirror=mirror, zero=True)
        self.attention = attention

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        y = self.norm(self.project(F.relu(self.convolution(x, step), inplace=True)))
        return x + (y if self.attention is None else self.attention(y, step))


class Stage(nn.Sequential):
    """Residual blocks that all dilate their convolutions by `dilation`.

    A dilated convolution equals a plain one on each of the dilation^2 phases of the image, and
    everything else in a block treats all pixels alike. PyTorch's dilated depthwise convolutions are
    several times slower than plain ones, on a CPU in the backward pass, on a GPU in both passes. So
    training there reorders the pixels once for the complete stage. The result is the same.
    """

    def __init__(self, dilation: int, *blocks: ResidualBlock) -> None:
        super().__init__(*blocks)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        divisible = x.shape[2] % self.dilation == 0 and x.shape[3] % self.dilation == 0
        pays = self.training and x.device.type in ("cpu", "cuda")
        step = self.dilation if pays and divisible else 1
        x = phases(x, step) if step > 1 else x
        for block in self:
            x = block(x, step)
        return merge_phases(x, step) if step > 1 else x


class UnshuffleDown(nn.Module):
    """Halve height and width without loss: pixel unshuffle (the inverse of Shi et al. 2016,
    arXiv:1609.05158) turns each 2x2 square into four channels, and a 1x1 convolution mixes them.

    (N, C, H, W) -> (N, C', H / 2, W / 2).
    """

    def __init__(
        self, channels: int, out_channels: int, *, groups: int = 1, mirror: bool = False
    ) -> None:
        super().__init__()
        self.pwconv = UnshuffleConv2d(channels, out_channels, groups=groups, mirror=mirror)
        self.norm = batch_norm(out_channels, mirror=mirror)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pwconv(x))


class MaxPoolDown(nn.Module):
    """Halve height and width by the maximum of each 2x2 square, then a 1x1 convolution."""

    def __init__(
        self, channels: int, out_channels: int, *, groups: int = 1, mirror: bool = False
    ) -> None:
        super().__init__()
        self.pwconv = PointwiseConv2d(channels, out_channels, groups=groups, mirror=mirror)
        self.norm = batch_norm(out_channels, mirror=mirror)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pwconv(F.max_pool2d(x, 2)))


class TransposedUp(nn.Module):
    """Double height and width with a learned 2x2 transposed convolution in groups.

    (N, C, H, W) -> (N, C', 2 H, 2 W).
    """

    def __init__(
        self, channels: int, out_channels: int, *, groups: int, mirror: bool = False
    ) -> None:
        super().__init__()
        self.upconv = TransposedConv2d(channels, out_channels, groups=groups, mirror=mirror)
        self.norm = batch_norm(out_channels, mirror=mirror, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.upconv(x))


class NearestUp(nn.Module):
    """Double height and width by repeating pixels, after a 1x1 convolution in groups.

    (N, C, H, W) -> (N, C', 2 H, 2 W).
    """

    def __init__(
        self, channels: int, out_channels: int, *, groups: int, mirror: bool = False
    ) -> None:
        super().__init__()
        self.pwconv = PointwiseConv2d(channels, out_channels, groups=groups, mirror=mirror)
        self.norm = batch_norm(out_channels, mirror=mirror, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.norm(self.pwconv(x)), scale_factor=2, mode="nearest")


class Hourglass(nn.Module):
    """x + up(body(down(x))): a residual branch at half the resolution.

    `down` halves height and width, `body` keeps them, `up` doubles them and ends in a norm whose
    scale starts at 0.
    """

    def __init__(self, down: nn.Module, body: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.body = body
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.body(self.down(x)))

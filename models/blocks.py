"""The building blocks of the networks: one small module an idea.

All of them map (N, C, H, W) to (N, C', H', W') and keep the memory format of their input; every
convolution is followed by a BatchNorm, so none has a bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch_norm(channels: int, *, zero: bool = False) -> nn.BatchNorm2d:
    """BatchNorm over `channels`; with `zero` its scale starts at 0.

    A residual branch that ends in a zero scale starts as the identity, so that a deep stack of them
    trains from the first step at a high learning rate (Goyal et al. 2017, arXiv:1706.02677).
    """
    norm = nn.BatchNorm2d(channels)
    if zero:
        nn.init.zeros_(norm.weight)
    return norm


def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W) -> the mean of each channel, (N, C).

    Over the middle dimension of (N, H * W, C): on channels_last tensors in half precision several
    times faster on a CPU than a mean over two dimensions.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


def phases(x: Tensor, dilation: int) -> Tensor:
    """(N, C, H, W) -> (N * dilation^2, C, H / dilation, W / dilation): the pixels of equal phase.

    PixelUnshuffle with the phases in the batch instead of in the channels.
    """
    n, c, h, w = x.shape
    d = dilation
    x = x.permute(0, 2, 3, 1).reshape(n, h // d, d, w // d, d, c)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n * d * d, h // d, w // d, c).permute(0, 3, 1, 2)


def merge_phases(x: Tensor, dilation: int) -> Tensor:
    """The inverse of `phases`."""
    n, c, h, w = x.shape
    d = dilation
    x = x.permute(0, 2, 3, 1).reshape(n // (d * d), d, d, h, w, c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n // (d * d), h * d, w * d, c).permute(0, 3, 1, 2)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise 3x3 convolution, one filter a channel, that keeps height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)


class DilatedDepthwiseConv2d(nn.Conv2d):
    """Depthwise 3x3 convolution with holes: `dilation` pixels between its taps (Yu & Koltun 2016,
    arXiv:1511.07122). Nine weights a channel see a square of 2 * dilation + 1 pixels.

    A dilated depthwise convolution equals a plain one on each of the dilation^2 phases of the
    image. On a CPU, PyTorch's backward of the former is several times slower than of the latter,
    two reorderings included, so training takes that way there; the result is the same.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        (dilation, _), (height, width) = self.dilation, x.shape[2:]
        divisible = height % dilation == 0 and width % dilation == 0
        if x.device.type != "cpu" or not torch.is_grad_enabled() or not divisible:
            return super().forward(x)
        y = F.conv2d(phases(x, dilation), self.weight, padding=1, groups=self.groups)
        return merge_phases(y, dilation)


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise 3x3, then pointwise 1x1 convolution, each normalised (Howard et al. 2017,
    MobileNets, arXiv:1704.04861): 9 C + C C' weights instead of 9 C C'.

    Args:
        dilation: of the depthwise convolution; 1 is a plain one.
        zero: start the last norm's scale at 0, for the end of a residual branch.
    """

    def __init__(self, channels: int, out_channels: int, *, dilation: int, zero: bool) -> None:
        super().__init__()
        self.dwconv = (
            DepthwiseConv2d(channels)
            if dilation == 1
            else DilatedDepthwiseConv2d(channels, dilation)
        )
        self.norm1 = batch_norm(channels)
        self.pwconv = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm2 = batch_norm(out_channels, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.pwconv(F.relu(self.norm1(self.dwconv(x)), inplace=True)))


class OrdinaryConv2d(nn.Module):
    """Ordinary 3x3 convolution and BatchNorm: what the depthwise-separable one replaces."""

    def __init__(self, channels: int, out_channels: int, *, dilation: int, zero: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.norm = batch_norm(out_channels, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention, ECA (Wang et al. 2020, arXiv:1910.03151): each channel is scaled
    by a sigmoid of a convolution over its neighbours' global averages. Three weights in all.
    """

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the scale of each channel, (N, C, 1, 1), between 0 and 1."""
        averages = global_average(x)
        # A few thousand numbers: float32 costs nothing, and half precision is slow here on a CPU.
        with torch.autocast(x.device.type, enabled=False):
            gate = self.conv(averages[:, None].float()).sigmoid()
        return gate.to(x.dtype)[:, 0, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class ResidualBlock(nn.Module):
    """x + attention(convolution(x)), with nothing after the sum: the stream of sums stays linear,
    as between the bottlenecks of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

    `convolution` keeps the shape and ends in a BatchNorm; `attention` keeps the shape.
    """

    def __init__(self, convolution: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.convolution(x))


class UnshuffleDown(nn.Module):
    """Halve height and width and lose nothing: pixel unshuffle (the inverse of Shi et al. 2016,
    arXiv:1609.05158) turns each 2x2 square into four channels, a 1x1 convolution mixes them.

    (N, C, H, W) -> (N, C', H / 2, W / 2).
    """

    def __init__(self, channels: int, out_channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.pwconv = nn.Conv2d(4 * channels, out_channels, 1, groups=groups, bias=False)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pwconv(self.unshuffle(x))), inplace=True)


class MaxPoolDown(nn.Module):
    """Halve height and width by the maximum of each 2x2 square, then a 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.pwconv = nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pwconv(F.max_pool2d(x, 2))), inplace=True)


class TransposedUp(nn.Module):
    """Double height and width with a learned 2x2 transposed convolution in groups.

    (N, C, H, W) -> (N, C', 2 H, 2 W).
    """

    def __init__(self, channels: int, out_channels: int, *, groups: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(
            channels, out_channels, 2, stride=2, groups=groups, bias=False
        )
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.upconv(x))


class NearestUp(nn.Module):
    """Double height and width by repeating pixels, after a 1x1 convolution in groups."""

    def __init__(self, channels: int, out_channels: int, *, groups: int) -> None:
        super().__init__()
        self.pwconv = nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.norm(self.pwconv(x)), scale_factor=2, mode="nearest")

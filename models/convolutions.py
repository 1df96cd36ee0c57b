"""The convolutions of the networks: depthwise, pointwise, dense, unshuffling and transposed.

All of them map (N, C, H, W) to (N, C', H', W') and keep the memory format of their input. With
`mirror` a convolution commutes with mirroring the image and swapping the halves of its channels,
and has half the parameters: see mirror.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mirror import TiedModule, even_and_odd, flipped, repeated, swapped


def phases(x: Tensor, dilation: int) -> Tensor:
    """(N, C, H, W) -> (N * dilation^2, C, H / dilation, W / dilation): the pixels of equal phase.

    As PixelUnshuffle, but the phases go into the batch instead of the channels.
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


def dense(kernel: Tensor, groups: int) -> Tensor:
    """A kernel (C', C / groups, H, W) of a convolution in groups, as one (C', C, H, W) of a
    convolution without: zero between the groups.

    For a transposed convolution likewise, from (C, C' / groups, H, W) to (C, C', H, W).
    """
    blocks = kernel.unflatten(0, (groups, -1))  # (groups, C' / groups, C / groups, H, W)
    diagonal = torch.eye(groups, dtype=kernel.dtype, device=kernel.device)
    spread = blocks[:, :, None] * diagonal[:, None, :, None, None, None]
    return spread.flatten(2, 3).flatten(0, 1)


def ungrouped(kernel: Tensor, groups: int, x: Tensor) -> tuple[Tensor, int]:
    """The kernel and the number of groups to convolve `x` with.

    cuDNN's convolutions in groups convert the layout of all operands, and take many times as long
    as the dense one, whose products with zeros cost a GPU next to nothing.
    """
    return (dense(kernel, groups), 1) if x.is_cuda and groups > 1 else (kernel, groups)


class DepthwiseConv2d(TiedModule, nn.Conv2d):
    """Depthwise 3x3 convolution, one filter a channel, that keeps height and width.

    Its taps are `dilation` pixels apart (Yu & Koltun 2016, arXiv:1511.07122): nine weights a
    channel see a square of 2 * dilation + 1 pixels.
    """

    def __init__(self, channels: int, dilation: int, *, mirror: bool = False) -> None:
        super().__init__(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        )
        if mirror:
            self.tie("weight", self.weight[: channels // 2], flipped)

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        """Convolve `phases(..., step)` of an image; in them the taps are dilation / step apart."""
        spread = self.dilation[0] // step
        return F.conv2d(x, self.tied("weight"), padding=spread, dilation=spread, groups=self.groups)


class PointwiseConv2d(TiedModule, nn.Conv2d):
    """1x1 convolution whose weight is a matrix (C', C), or with `mirror` the two (2, C' / 2, C / 2)
    that make it. Muon trains these matrices (training/optimizer.py)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        groups: int = 1,
        bias: bool = False,
        mirror: bool = False,
    ) -> None:
        super().__init__(channels, out_channels, 1, groups=groups, bias=bias)
        matrix = self.weight.detach().flatten(1)
        self.weight = nn.Parameter(matrix)
        if not mirror:
            return
        if groups == 1:
            parts = matrix[: out_channels // 2].unflatten(1, (2, -1)).transpose(0, 1)  # A and B
            parts = torch.stack([parts[0] + parts[1], parts[0] - parts[1]])
            self.tie("weight", parts, even_and_odd)
        else:
            self.tie("weight", matrix[: out_channels // 2], repeated)
        if self.bias is not None:
            self.tie("bias", self.bias[: out_channels // 2], repeated)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.tied("weight")[:, :, None, None]
        bias = None if self.bias is None else self.tied("bias")
        return F.conv2d(x, kernel, bias, groups=self.groups)


class DenseConv2d(TiedModule, nn.Conv2d):
    """Ordinary 3x3 convolution that keeps height and width.

    With `mirror`, `halves` says whether its input has two halves; an image has none.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        dilation: int = 1,
        *,
        mirror: bool = False,
        halves: bool = True,
    ) -> None:
        super().__init__(channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        if mirror:
            self.tie("weight", self.weight[: out_channels // 2], swapped if halves else flipped)

    def forward(self, x: Tensor, step: int = 1) -> Tensor:
        """As in DepthwiseConv2d."""
        spread = self.dilation[0] // step
        return F.conv2d(x, self.tied("weight"), padding=spread, dilation=spread)


class PatchConv2d(PointwiseConv2d):
    """3x3 convolution that keeps height and width, as a pointwise one on patches: its weight is a
    matrix (C', 9 C / groups), or with `mirror` its first half, (C' / 2, 9 C / groups)."""

    patch, patch_stride, patch_padding = 3, 1, 1  # in pixels; `patch` is the kernel size

    def __init__(
        self, channels: int, out_channels: int, *, groups: int = 1, mirror: bool = False
    ) -> None:
        super().__init__(self.patch**2 * channels, out_channels, groups=groups)
        if mirror:
            self.tie("weight", self.weight[: out_channels // 2], self._mirror)

    def _square(self, matrix: Tensor) -> Tensor:
        return matrix.unflatten(-1, (-1, self.patch, self.patch))

    def _mirror(self, half: Tensor) -> Tensor:
        tie = swapped if self.groups == 1 else flipped
        return tie(self._square(half)).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        kernel, groups = ungrouped(self._square(self.tied("weight")), self.groups, x)
        return F.conv2d(
            x, kernel, stride=self.patch_stride, padding=self.patch_padding, groups=groups
        )


class UnshuffleConv2d(PatchConv2d):
    """Pixel unshuffle and a pointwise convolution in one: a 2x2 convolution with stride 2, whose
    weight is a matrix (C', 4 C / groups), or with `mirror` its first half.

    It takes half the time on a CPU, and CUDA has no channels_last kernel for nn.PixelUnshuffle.
    """

    patch, patch_stride, patch_padding = 2, 2, 0


class TransposedConv2d(TiedModule, nn.ConvTranspose2d):
    """2x2 transposed convolution in groups with stride 2; with `mirror` the number of groups
    is even, and each half of the channels has half of them."""

    def __init__(
        self, channels: int, out_channels: int, *, groups: int, mirror: bool = False
    ) -> None:
        super().__init__(channels, out_channels, 2, stride=2, groups=groups, bias=False)
        if mirror:
            self.tie("weight", self.weight[: channels // 2], flipped)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        kernel, groups = ungrouped(self.tied("weight"), self.groups, x)
        return F.conv_transpose2d(x, kernel, stride=2, groups=groups)

"""The teacher: a mirror-symmetric residual network of dense convolutions. It is over the size limit
on purpose: smaller networks are distilled from it (training/teacher.py)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import UnshuffleDown, batch_norm, global_average
from .convolutions import DenseConv2d, PatchConv2d
from .mirror import TiedTensors


@dataclass(frozen=True)
class TeacherConfig:
    """The config of the teacher.

    Attributes:
        widths: channels at 32x32, 16x16 and 8x8 pixels.
        depths: residual blocks at 16x16 and at 8x8.
    """

    widths: tuple[int, int, int] = (64, 128, 256)
    depths: tuple[int, int] = (2, 2)


class DenseBlock(nn.Module):
    """relu(x + norm(convolution(relu(norm(convolution(x)))))), with 3x3 convolutions (He et al.
    2016, arXiv:1512.03385). The kernels are matrices, so Muon trains them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PatchConv2d(channels, channels, mirror=True)
        self.norm1 = batch_norm(channels, mirror=True)
        self.conv2 = PatchConv2d(channels, channels, mirror=True)
        self.norm2 = batch_norm(channels, mirror=True, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(y)), inplace=True)


class Teacher(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, 10).

    image   3 x 32 x 32
    stem    3x3 convolution                              64 x 32 x 32
    middle  pixel unshuffle, 1x1, residual blocks       128 x 16 x 16
    coarse  pixel unshuffle, 1x1, residual blocks       256 x 8 x 8
    head    global average, mean of mirrored halves, linear
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.widths
        self.stem = nn.Sequential(
            DenseConv2d(3, fine, mirror=True, halves=False),
            batch_norm(fine, mirror=True),
            nn.ReLU(inplace=True),
        )
        self.middle = self._stage(fine, middle, config.depths[0])
        self.coarse = self._stage(middle, coarse, config.depths[1])
        self.fc = nn.Linear(coarse // 2, 10)
        self.tied_tensors = TiedTensors(self)

    @staticmethod
    def _stage(channels: int, out_channels: int, depth: int) -> nn.Sequential:
        blocks = [DenseBlock(out_channels) for _ in range(depth)]
        down = UnshuffleDown(channels, out_channels, mirror=True)
        return nn.Sequential(down, nn.ReLU(inplace=True), *blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, 256, 8, 8)."""
        with self.tied_tensors.assembled():
            return self.coarse(self.middle(self.stem(x)))

    def forward_head(self, features: Tensor) -> Tensor:
        """(N, 256, 8, 8) -> logits (N, 10)."""
        return self.fc(global_average(features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

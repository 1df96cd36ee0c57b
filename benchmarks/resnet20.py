"""ResNet-20 for CIFAR-10 (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2), the
yardstick of small networks: 269,722 parameters. Only the benchmarks use it, for its speed.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
BLOCKS = 3  # a width, of two convolutions each: 1 + 3 * 3 * 2 + 1 = 20 layers


class BasicBlock(nn.Module):
    """(N, C, H, W) -> (N, C', H / stride, W / stride): two 3x3 convolutions and a shortcut.

    Where the shape changes, the shortcut takes every other pixel and fills the new channels with
    zeros (option A of the paper), which costs no parameters.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.added_channels = out_channels - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.added_channels:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, 0, self.added_channels))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
        ]
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range(BLOCKS):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride))
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))

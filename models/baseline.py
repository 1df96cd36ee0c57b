"""The baseline: the network of the original notebook, 112,966 weights, layer for layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BaselineConfig:
    """The baseline's config: it has no fields."""


class Dropout(nn.Dropout):
    """nn.Dropout, three times as fast on a CPU, where drawing its mask takes a third of the
    baseline's training step. One random 64-bit word serves four elements, with 16 bits each, so the
    probability is exact to 1 / 131072.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        lowest = round(2**16 * self.p) - 2**15
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        mask = torch.empty_like(x)  # dense, in the memory format of x
        flat = mask.as_strided((x.numel(),), (1,))
        torch.ge(words.view(torch.int16)[: x.numel()], lowest, out=flat)
        return x * mask.mul_(1 / (1 - self.p))


def _activation(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(channels), Dropout(dropout))


class Baseline(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, 10).

    Two skip connections: the 1x1 convolution's output skips the 3x3 convolution after it, and the
    dilated convolution's output skips the next two stages.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3, padding=1)
        self.act1 = _activation(10, 0.1)
        self.conv2 = nn.Conv2d(10, 16, 5, padding=1)
        self.act2 = _activation(16, 0.1)
        self.pool1 = nn.MaxPool2d(2)
        self.pwconv1 = nn.Conv2d(16, 32, 1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.act3 = _activation(32, 0.2)
        self.pool2 = nn.MaxPool2d(2)
        self.dilated = nn.Conv2d(32, 64, 3, padding=1, dilation=2)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1)
        self.act4 = _activation(64, 0.3)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=32)
        self.pwconv2 = nn.Conv2d(64, 64, 1)
        self.act5 = _activation(64, 0.3)
        self.pool3 = nn.MaxPool2d(2)
        self.conv5 = nn.Conv2d(64, 64, 3, padding=1)
        self.act6 = _activation(64, 0.1)
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, 64, 2, 2)."""
        x = self.act1(self.conv1(x))
        x = self.pool1(self.act2(self.conv2(x)))
        x = self.pwconv1(x)
        x = self.pool2(x + self.act3(self.conv3(x)))
        x = self.dilated(x)
        y = self.act4(self.conv4(x))
        x = self.pool3(x + self.act5(self.pwconv2(self.grouped(y))))
        return self.act6(self.conv5(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """(N, 64, 2, 2) -> logits (N, 10)."""
        return self.fc(self.pool4(features).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

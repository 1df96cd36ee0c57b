"""The default network: residual depthwise-separable blocks on three scales, under 100k weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import (
    DepthwiseSeparableConv2d,
    EfficientChannelAttention,
    MaxPoolDown,
    NearestUp,
    OrdinaryConv2d,
    ResidualBlock,
    TransposedUp,
    UnshuffleDown,
    batch_norm,
    global_average,
)


@dataclass(frozen=True)
class Under100kConfig:
    """What rebuilds the network; each of the five switches leaves out one operation.

    Attributes:
        widths: channels at 32x32, 16x16 and 8x8 pixels.
        depths: residual blocks on each of these scales.
        separable: depthwise-separable convolutions; False: ordinary 3x3 ones, which take many
            times the parameters, so choose smaller `widths`.
        dilated: every second block below 32x32 dilates its convolution; False: none does.
        transposed: the coarse scale comes back up through a transposed convolution; False: through
            a 1x1 convolution and repeated pixels.
        unshuffle: resolution is halved by pixel unshuffle; False: by max pooling.
        attention: channel attention ends each residual branch at 8x8; False: nothing does.
    """

    widths: tuple[int, int, int] = (32, 64, 128)
    depths: tuple[int, int, int] = (1, 6, 2)
    separable: bool = True
    dilated: bool = True
    transposed: bool = True
    unshuffle: bool = True
    attention: bool = True


class Under100k(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, 10).

        image  3 x 32 x 32
        stem   3x3 convolution               32 x 32 x 32
        stage1 residual blocks, unshuffle -> 64 x 16 x 16
        stage2 residual blocks               64 x 16 x 16  = fine
        stage3 unshuffle, residual blocks   128 x  8 x  8  = coarse
        fuse   fine + transposed(coarse), a residual block: 64 x 16 x 16
        head   linear on the global averages of both scales

    The residual blocks are depthwise separable, every second one dilated, those at 8x8 with
    channel attention.
    """

    def __init__(self, config: Under100kConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        down = UnshuffleDown if config.unshuffle else MaxPoolDown
        up = TransposedUp if config.transposed else NearestUp
        self.stem = nn.Sequential(
            nn.Conv2d(3, fine, 3, padding=1, bias=False), batch_norm(fine), nn.ReLU(inplace=True)
        )
        self.stage1 = nn.Sequential(*self._blocks(fine, config.depths[0], dilated=False))
        self.down1 = down(fine, middle, groups=1)
        self.stage2 = nn.Sequential(*self._blocks(middle, config.depths[1], dilated=True))
        self.down2 = down(middle, coarse, groups=4)
        self.stage3 = nn.Sequential(
            *self._blocks(coarse, config.depths[2], dilated=True, attention=True)
        )
        self.up = up(coarse, middle, groups=4)
        self.fuse = self._block(middle, dilation=1, attention=False)
        self.fc = nn.Linear(middle + coarse, 10)

    def _block(self, channels: int, *, dilation: int, attention: bool) -> ResidualBlock:
        convolution = DepthwiseSeparableConv2d if self.config.separable else OrdinaryConv2d
        return ResidualBlock(
            convolution(channels, channels, dilation=dilation, zero=True),
            EfficientChannelAttention() if attention else nn.Identity(),
        )

    def _blocks(
        self, channels: int, depth: int, *, dilated: bool, attention: bool = False
    ) -> list[ResidualBlock]:
        """`depth` blocks, the second, fourth, ... of them dilated."""
        return [
            self._block(
                channels,
                dilation=2 if dilated and self.config.dilated and index % 2 else 1,
                attention=attention and self.config.attention,
            )
            for index in range(depth)
        ]

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 32, 32) -> the fused fine scale (N, C2, 16, 16), the coarse (N, C3, 8, 8)."""
        fine = self.stage2(self.down1(self.stage1(self.stem(x))))
        coarse = self.stage3(self.down2(fine))
        fused = self.fuse(F.relu(fine + self.up(coarse), inplace=True))
        return fused, coarse

    def forward(self, x: Tensor) -> Tensor:
        scales = self.forward_features(x)
        return self.fc(torch.cat([global_average(scale) for scale in scales], 1))

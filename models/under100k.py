"""The default network: mirror-symmetric residual depthwise-separable blocks at 32x32 and 16x16
pixels. The logits of an image and of its mirror image are equal."""

from dataclasses import dataclass

from torch import Tensor, nn

from .blocks import (
    DepthwiseSeparableConv2d,
    EfficientChannelAttention,
    Hourglass,
    MaxPoolDown,
    NearestUp,
    OrdinaryConv2d,
    ResidualBlock,
    Stage,
    TransposedUp,
    UnshuffleDown,
    batch_norm,
    global_average,
)
from .convolutions import DenseConv2d
from .mirror import TiedTensors


@dataclass(frozen=True)
class Under100kConfig:
    """The config of the default network; each of the six switches removes one operation.

    Attributes:
        widths: channels at 32x32 and at 16x16 pixels.
        hidden: channels between the two pointwise layers of a block, at these resolutions.
        depths: residual blocks at 32x32, then at 16x16 with dilation 1, 2 and 4.
        separable: depthwise-separable convolutions; False: ordinary 3x3 ones, which take many
            times the parameters, so choose a smaller `hidden`.
        dilated: blocks dilate their convolutions; False: none does.
        transposed: the hourglass upsamples by a transposed convolution; False: by a 1x1 convolution
            and repeated pixels.
        unshuffle: resolution is halved by pixel unshuffle; False: by max pooling.
        attention: channel attention on the last block of each stage at 16x16 and below; False: on
            none.
        mirror: every layer commutes with mirroring the image and learns half of its kernel; False:
            it learns all of it, nearly twice the parameters, so choose smaller widths.
    """

    widths: tuple[int, int] = (32, 96)
    hidden: tuple[int, int] = (64, 96)
    depths: tuple[int, int, int, int] = (5, 2, 2, 2)
    separable: bool = True
    dilated: bool = True
    transposed: bool = True
    unshuffle: bool = True
    attention: bool = True
    mirror: bool = True


@dataclass(frozen=True)
class Under50kConfig(Under100kConfig):
    """The same network at about half the parameters: see Under100kConfig."""

    widths: tuple[int, int] = (32, 64)
    hidden: tuple[int, int] = (64, 64)
    depths: tuple[int, int, int, int] = (4, 2, 2, 2)


@dataclass(frozen=True)
class Under25kConfig(Under100kConfig):
    """The same network at about a quarter of the parameters: see Under100kConfig."""

    widths: tuple[int, int] = (32, 32)
    hidden: tuple[int, int] = (32, 64)
    depths: tuple[int, int, int, int] = (3, 2, 2, 2)


GROUPS = 8  # of the hourglass's down- and upsampling layers


class Under100k(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, 10).

    image      3 x 32 x 32
    stem       3x3 convolution                                    32 x 32 x 32
    fine       residual blocks                                    32 x 32 x 32
    down       pixel unshuffle, 1x1                               96 x 16 x 16
    near       residual blocks, dilation 1                        96 x 16 x 16
    hourglass  pixel unshuffle, a block, transposed convolution   96 x 16 x 16
    wide       residual blocks, dilation 2                        96 x 16 x 16
    widest     residual blocks, dilation 4                        96 x 16 x 16
    head       global average, mean of mirrored halves, linear
    """

    def __init__(self, config: Under100kConfig) -> None:
        super().__init__()
        self.config = config
        fine, coarse = config.widths
        mirror = config.mirror
        down = UnshuffleDown if config.unshuffle else MaxPoolDown
        up = TransposedUp if config.transposed else NearestUp
        self.stem = nn.Sequential(
            DenseConv2d(3, fine, halves=False, mirror=mirror),
            batch_norm(fine, mirror=mirror),
            nn.ReLU(inplace=True),
        )
        self.fine = self._stage(0, config.depths[0])
        self.down = down(fine, coarse, mirror=mirror)
        self.near = self._stage(1, config.depths[1])
        self.hourglass = Hourglass(
            down(coarse, coarse, groups=GROUPS, mirror=mirror),
            self._stage(1, 1),
            up(coarse, coarse, groups=GROUPS, mirror=mirror),
        )
        self.wide = self._stage(1, config.depths[2], dilation=2)
        self.widest = self._stage(1, config.depths[3], dilation=4)
        self.fc = nn.Linear(coarse // 2 if config.mirror else coarse, 10)
        self.tied_tensors = TiedTensors(self)

    def _stage(self, scale: int, depth: int, dilation: int = 1) -> Stage:
        config = self.config
        channels, hidden = config.widths[scale], config.hidden[scale]
        convolution = DepthwiseSeparableConv2d if config.separable else OrdinaryConv2d
        dilation = dilation if config.dilated else 1
        attention = config.attention and scale == 1
        mirror = config.mirror
        blocks = [
            ResidualBlock(
                convolution(channels, hidden, dilation, mirror=mirror),
                hidden,
                channels,
                EfficientChannelAttention(mirror=mirror)
                if attention and index == depth - 1
                else None,
                mirror=mirror,
            )
            for index in range(depth)
        ]
        return Stage(dilation, *blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, widths[1], 16, 16)."""
        with self.tied_tensors.assembled():
            x = self.near(self.down(self.fine(self.stem(x))))
            return self.widest(self.wide(self.hourglass(x)))

    def forward_head(self, features: Tensor) -> Tensor:
        """(N, widths[1], 16, 16) -> logits (N, 10)."""
        return self.fc(global_average(features, 2 if self.config.mirror else 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

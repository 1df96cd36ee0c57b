"""Batched augmentation of CIFAR images: plain functions from a batch to a batch.

What is random about them is passed in, so that each can be held against a slow oracle. `loader.py`
draws the random numbers of an epoch and composes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.files import DataError

PADDING_MODES = ("reflect", "zeros")
FLIPS = ("none", "random", "alternating")


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training image; raises DataError for values that make no sense."""

    crop_padding: int = 4  # pixels added on each side before the random crop, 0 = no crop
    padding_mode: str = "reflect"  # what the padding shows: the mirrored image, or zeros (black)
    flip: str = "random"  # horizontal: a coin every epoch, or a coin once and alternating from then
    cutout: int = 0  # side of the square that is blanked, in pixels, 0 = none
    mixup: float = 0.0  # largest share of another image and of its label that is mixed in

    def __post_init__(self) -> None:
        if self.padding_mode not in PADDING_MODES:
            raise DataError(_not_one_of("padding mode", self.padding_mode, PADDING_MODES))
        if self.flip not in FLIPS:
            raise DataError(_not_one_of("flip", self.flip, FLIPS))
        if not 0 <= self.crop_padding < 32:
            raise DataError(f"crop padding {self.crop_padding}: choose 0 to 31 pixels")
        if not 0 <= self.cutout <= 32:
            raise DataError(f"cutout {self.cutout}: choose 0 to 32 pixels")
        if not 0 <= self.mixup <= 0.5:
            raise DataError(f"mixup {self.mixup}: choose 0 to 0.5")


NO_AUGMENTATION = Augmentation(crop_padding=0, flip="none", cutout=0)


def _not_one_of(what: str, value: object, choices: Sequence[str]) -> str:
    return f"unknown {what} {value!r}: choose one of {', '.join(choices)}"


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """Widen images (N, C, H, W) by `padding` < H, W pixels a side; the result is channels_last.

    `mode` "zeros" leaves the border 0; "reflect" mirrors the image there without repeating its
    edge (PyTorch's own reflection takes no uint8).
    """
    n, c, h, w = images.shape
    padded = torch.zeros(
        (n, h + 2 * padding, w + 2 * padding, c), dtype=images.dtype, device=images.device
    ).permute(0, 3, 1, 2)
    padded[:, :, padding : padding + h, padding : padding + w] = images
    if mode == "reflect":
        first, last = padding, padding + h - 1
        for i in range(1, padding + 1):
            padded[:, :, first - i] = padded[:, :, first + i]
            padded[:, :, last + i] = padded[:, :, last - i]
        first, last = padding, padding + w - 1
        for i in range(1, padding + 1):
            padded[:, :, :, first - i] = padded[:, :, :, first + i]
            padded[:, :, :, last + i] = padded[:, :, :, last - i]
    return padded


def crop(padded: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut a square out of each image: (N, C, H, W) -> (N, C, size, size), channels_last.

    `top` and `left` (N,) int64 are the square's first row and column; it must lie within.
    """
    # (N, C, H - size + 1, W - size + 1, size, size): a view of every possible square, no copy.
    squares = padded.unfold(2, size, 1).unfold(3, size, 1)
    n = torch.arange(len(padded), device=padded.device)
    return squares[n, :, top, left].contiguous(memory_format=torch.channels_last)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left and right those images (N, C, H, W) whose `mask` (N,) bool is set."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def mix(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Blend floating-point tensors (N, ...): `share` (N,) of `others`, the rest of `images` (mixup,
    Zhang et al. 2018, https://arxiv.org/abs/1710.09412)."""
    return images.lerp(others, share.to(images.dtype).view(-1, *[1] * (images.ndim - 1)))


def cutout(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square of side `size` to 0 in each image (N, C, H, W) (DeVries & Taylor 2017,
    https://arxiv.org/abs/1708.04552).

    `top` and `left` (N,) int64 are its first row and column. It may stick out over any border;
    the part outside is lost. Of a normalised image 0 is the data set's mean colour.
    """
    h, w = images.shape[-2:]
    row = torch.arange(h, device=images.device) - top.view(-1, 1)  # (N, H), 0 at the top of it
    column = torch.arange(w, device=images.device) - left.view(-1, 1)
    in_rows = (row >= 0) & (row < size)
    in_columns = (column >= 0) & (column < size)
    mask = in_rows.view(-1, 1, h, 1) & in_columns.view(-1, 1, 1, w)
    return torch.where(mask, 0, images)  # masked_fill would lose channels_last


def normalize(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 images (N, 3, H, W), computed in float32 and returned
    as `dtype`.

    `mean` and `std` are float32, of pixels in [0, 1], and broadcast against the images.
    """
    return images.float().sub_(255 * mean).mul_(1 / (255 * std)).to(dtype)

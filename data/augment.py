"""Batched augmentation of CIFAR images: plain functions on batches, or on an epoch's coordinates.

What is random about them is passed in, so that each can be held against a slow oracle. `loader.py`
draws the random numbers of an epoch and composes them: padding, crop and flip as one gather.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batch_files import DataError

PADDING_MODES = ("reflect", "zeros")
FLIPS = ("none", "random", "alternating")
MAX_CROP_PADDING, MAX_CUTOUT = 31, 32  # pixels
MAX_MIXUP = 0.5


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
        if not 0 <= self.crop_padding <= MAX_CROP_PADDING:
            raise DataError(
                f"crop padding {self.crop_padding}: choose 0 to {MAX_CROP_PADDING} pixels"
            )
        if not 0 <= self.cutout <= MAX_CUTOUT:
            raise DataError(f"cutout {self.cutout}: choose 0 to {MAX_CUTOUT} pixels")
        if not 0 <= self.mixup <= MAX_MIXUP:
            raise DataError(f"mixup {self.mixup}: choose 0 to {MAX_MIXUP}")


NO_AUGMENTATION = Augmentation(crop_padding=0, flip="none", cutout=0)


def _not_one_of(what: str, value: object, choices: Sequence[str]) -> str:
    return f"unknown {what} {value!r}: choose one of {', '.join(choices)}"


def sources(start: Tensor, size: int, mode: str, mirrored: Tensor | None = None) -> Tensor:
    """Which row (or column) of an image of `size` rows each row of its crop shows: (N, size) int32.

    `start` (N,) is the crop's first row, counted from the image's: -size < start < size. Rows
    outside the image are mirrored at its edge without repeating it ("reflect"), or -1 for black
    ("zeros"). Crops whose `mirrored` (N,) bool is set show their rows in reverse.
    """
    steps = torch.arange(size, dtype=torch.int32, device=start.device)
    places = start.to(torch.int32)[:, None] + steps
    if mirrored is not None:
        places = torch.where(mirrored[:, None], places.flip(1), places)
    if mode == "reflect":
        return (size - 1) - ((size - 1) - places.abs()).abs()
    return torch.where((places < 0) | (places >= size), -1, places)


def mix(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Blend floating-point tensors (N, ...): `share` (N,) of `others`, the rest of `images` (mixup,
    Zhang et al. 2018, https://arxiv.org/abs/1710.09412)."""
    return images.lerp(others, share.to(images.dtype).view(-1, *[1] * (images.ndim - 1)))


def within(start: Tensor, length: int, size: int) -> Tensor:
    """(N, size) bool: which of `size` rows lie among the `length` rows from `start` (N,) on."""
    places = torch.arange(size, device=start.device) - start[:, None]
    return (places >= 0) & (places < length)


def cutout(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Set a rectangle to 0 in each image (N, C, H, W) (DeVries & Taylor 2017,
    https://arxiv.org/abs/1708.04552): where both its row, of `rows` (N, H), and its column, of
    `columns` (N, W), are 1 and not 0; both are of the images' dtype. The result is channels_last.
    Of a normalised image 0 is the data set's mean colour.

    As x - x * mask over rows of W * C numbers, which is exact, and on a CPU four times faster than
    torch.where with a mask that all channels share.
    """
    lines = images.permute(0, 2, 3, 1).flatten(2)  # (N, H, W * C), a view of channels_last
    columns = columns[:, :, None].expand(-1, -1, images.shape[1]).flatten(1)
    blanked = lines.addcmul(lines, rows[:, :, None] * columns[:, None], value=-1)
    return blanked.unflatten(2, (-1, images.shape[1])).permute(0, 3, 1, 2)


def normalize(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 images (N, 3, H, W), computed in float32 and returned
    as `dtype`.

    `mean` and `std` are float32, of pixels in [0, 1], and broadcast against the images.
    """
    return images.float().sub_(255 * mean).mul_(1 / (255 * std)).to(dtype)

"""Batched augmentation of CIFAR images: pure functions on batches, or on an epoch's coordinates.

Their random numbers are arguments, so that each can be tested against a slow reference. `loader.py`
draws the random numbers of an epoch and combines padding, crop and flip into one gather.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING_MODES = ("reflect", "zeros")
FLIPS = ("none", "random", "alternating")


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of each training image; by default none."""

    crop_padding: int = 0  # pixels added on each side before the random crop, 0 = no crop
    padding_mode: str = "reflect"  # what the padding shows: the mirrored image, or zeros (black)
    flip: str = "none"  # horizontal: drawn in every epoch, or drawn once and then alternating
    cutout: int = 0  # side of the blanked square in pixels, 0 = none
    mixup: float = 0.0  # largest share of a second image and its label


def source_indices(start: Tensor, size: int, mode: str, mirrored: Tensor | None = None) -> Tensor:
    """The source row (or column) in the image of each row of its crop, (N, size) int32.

    `start` (N,) is the crop's first row relative to the image's, -size < start < size. Rows outside
    the image are mirrored at its edge without repeating it ("reflect"), or -1 for black ("zeros").
    Crops with `mirrored` (N,) bool have their rows in reverse.
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
    """(N, size) bool: whether each of `size` rows lies in [start, start + length), `start` (N,)."""
    places = torch.arange(size, device=start.device) - start[:, None]
    return (places >= 0) & (places < length)


def cutout(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Set a rectangle to 0 in each image (N, C, H, W) (DeVries & Taylor 2017,
    https://arxiv.org/abs/1708.04552). The result is channels_last.

    The rectangle is where `rows` (N, H) and `columns` (N, W) are both 1 and not 0; both have the
    images' dtype. In a normalised image 0 is the data set's mean colour.

    Computes x - x * mask over rows of W * C numbers, which is exact, and on a CPU four times faster
    than torch.where with a mask that all channels share.
    """
    lines = images.permute(0, 2, 3, 1).flatten(2)  # (N, H, W * C), a view of channels_last
    columns = columns[:, :, None].expand(-1, -1, images.shape[1]).flatten(1)
    blanked = lines.addcmul(lines, rows[:, :, None] * columns[:, None], value=-1)
    return blanked.unflatten(2, (-1, images.shape[1])).permute(0, 3, 1, 2)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 images (N, 3, H, W), in float32.

    `mean` and `std` are float32, of pixels in [0, 1], and broadcast against the images.
    """
    return images.float().sub_(255 * mean).mul_(1 / (255 * std))

"""Batched augmentation of CIFAR images, and the loader that applies it.

The whole split lives on the training device as one uint8 tensor; each batch is cut out of it,
augmented and normalised there by a handful of tensor operations. There are no worker processes
and no per-image Python. `crop`, `flip`, `normalize`, `cutout` and `mix` are plain functions from a
batch to a batch: what is random about them is passed in, so that each can be held against a slow
oracle. `Loader` draws the random numbers of an epoch and composes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.cifar10 import CLASSES, DataError, Split

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


@dataclass(frozen=True)
class _Epoch:
    """What is drawn for one epoch; each tensor (N,), in the order in which images are shown."""

    index: Tensor  # the image's place in the split
    crop_top: Tensor
    crop_left: Tensor
    flip: Tensor
    cutout_top: Tensor
    cutout_left: Tensor
    share: Tensor  # of the image's partner in mixup


def _generator(stream: int, seed: int, epoch: int) -> torch.Generator:
    """A CPU generator for (seed, epoch). Neighbouring seeds and epochs give unrelated numbers."""
    state = np.random.SeedSequence((stream, epoch, seed)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Loader:
    """Batches of one split: an iterable of (images, labels) with a length.

    images: (N, 3, 32, 32), normalised, channels_last, of `dtype`; labels: (N,) int64, or with mixup
    (N, 10) float32, the share of each class; both on `device`. The last batch may be shorter. The
    order and the augmentation depend on nothing but (seed, epoch), whatever the device: all random
    numbers of an epoch are drawn on the CPU before its first batch. For evaluation give
    `augmentation=None, shuffle=False`.

    Of `world_size` processes that train together each has a loader with its own `rank`, and takes
    its part of every batch: together the batch as it is with one process, in sizes that differ by
    one at most (none is left for some, where the last batch is very short). Batch size, length and
    `images` are those of the whole.

    The split is copied to the device once, already padded when the augmentation crops (an image
    takes 3 kB, padded by 4 pixels 4.8 kB); `split` itself is not kept.

    Raises DataError for a batch size below 1, below the number of processes or above the split's,
    and for a negative seed.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        augmentation: Augmentation | None,
        seed: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size}: choose 1 or more")
        if batch_size > len(split):
            raise DataError(
                f"batch size {batch_size} is larger than the {split.name} split of {len(split)}"
                " images: choose a smaller one"
            )
        if batch_size < world_size:
            raise DataError(
                f"batch size {batch_size} is smaller than the number of processes, {world_size}:"
                " choose a larger one, or fewer processes"
            )
        if seed < 0:
            raise DataError(f"seed {seed}: choose 0 or more")
        self.batch_size = batch_size
        self.augmentation = augmentation or NO_AUGMENTATION
        self.seed = seed
        self.device = torch.device(device)
        self.dtype = dtype
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

        self._size = split.images.shape[-1]
        self._images = split.images.to(self.device, memory_format=torch.channels_last)
        labels = split.labels.to(self.device)
        mixed = self.augmentation.mixup > 0
        self._labels = F.one_hot(labels, len(CLASSES)).float() if mixed else labels
        # As large as an image and in its memory layout: broadcasting three numbers over
        # channels_last images would make the innermost loop three elements long.
        self._mean = self._per_pixel(mean)
        self._std = self._per_pixel(std)

    def _per_pixel(self, channels: Sequence[float]) -> Tensor:
        values = torch.tensor(channels, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        values = values.expand(1, len(channels), self._size, self._size)
        return values.contiguous(memory_format=torch.channels_last)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose what iterating shows from now on: `epoch`, without its first `first_batch`
        batches, which are not computed. The rest is as it would have been after them."""
        self.epoch = epoch
        self.first_batch = first_batch

    @property
    def images(self) -> int:
        """Number of images of a whole epoch."""
        return len(self._labels)

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._draw(self.epoch)
        for batch in range(self.first_batch, len(self)):
            yield self._batch(epoch, batch)

    def _whole(self, batch: int) -> tuple[int, int]:
        """The first place of a batch in the order of the epoch, and its number of images."""
        start = batch * self.batch_size
        return start, min(self.batch_size, self.images - start)

    def part(self, batch: int) -> slice:
        """The places, in the order of the epoch, of the images that this process takes of a batch;
        the larger parts are those of the first ranks."""
        start, size = self._whole(batch)
        first, end = (-(-size * rank // self.world_size) for rank in (self.rank, self.rank + 1))
        return slice(start + first, start + end)

    def weights(self) -> Iterator[float]:
        """For each batch that iterating shows: what to multiply the mean loss of this part with,
        so that the mean of the gradients over the processes is the gradient of the whole batch's
        mean loss; 1 where all parts are equal."""
        for batch in range(self.first_batch, len(self)):
            part, (_, size) = self.part(batch), self._whole(batch)
            yield (part.stop - part.start) * self.world_size / size

    def _draw(self, epoch: int) -> _Epoch:
        n, size, augmentation = len(self._labels), self._size, self.augmentation
        generator = _generator(0, self.seed, epoch)

        def draw(count: int) -> Tensor:
            return torch.randint(count, (n,), generator=generator)

        index = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        crop_top = draw(2 * augmentation.crop_padding + 1)
        crop_left = draw(2 * augmentation.crop_padding + 1)
        # The centre falls on any pixel, so the square is cut at the border as often as it may be.
        cutout_top = draw(size) - augmentation.cutout // 2
        cutout_left = draw(size) - augmentation.cutout // 2
        coin = draw(2) == 1
        if augmentation.flip == "alternating":
            # Jordan 2024 (airbench, https://arxiv.org/abs/2404.00498): an image's first coin
            # holds, and every other epoch shows it the other way round.
            first = torch.randint(2, (n,), generator=_generator(1, self.seed, 0)) == 1
            coin = first[index] ^ (epoch % 2 == 1)
        share = augmentation.mixup * torch.rand(n, generator=generator)
        drawn = (index, crop_top, crop_left, coin, cutout_top, cutout_left, share)
        return _Epoch(*(numbers.to(self.device) for numbers in drawn))

    def _augmented(self, epoch: _Epoch, part: slice) -> tuple[Tensor, Tensor]:
        index = epoch.index[part]
        # index_select copies whole images; plain indexing goes pixel by pixel (20 times slower).
        images = self._images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
        augmentation = self.augmentation
        if augmentation.crop_padding:
            # A batch at a time: padded, the whole split would take half as much memory again.
            images = pad(images, augmentation.crop_padding, augmentation.padding_mode)
            images = crop(images, epoch.crop_top[part], epoch.crop_left[part], self._size)
        if augmentation.flip != "none":
            images = flip(images, epoch.flip[part])
        images = normalize(images, self._mean, self._std, self.dtype)
        if augmentation.cutout:
            top, left = epoch.cutout_top[part], epoch.cutout_left[part]
            images = cutout(images, top, left, augmentation.cutout)
        return images, self._labels.index_select(0, index)

    def _batch(self, epoch: _Epoch, batch: int) -> tuple[Tensor, Tensor]:
        part = self.part(batch)
        images, labels = self._augmented(epoch, part)
        if not self.augmentation.mixup:
            return images, labels
        # The order is random, so the partner may be the image at the same distance from the other
        # end of the batch: with one process there is nothing more to augment.
        start, size = self._whole(batch)
        mirrored = slice(2 * start + size - part.stop, 2 * start + size - part.start)
        others, other_labels = (
            (images, labels) if mirrored == part else self._augmented(epoch, mirrored)
        )
        share = epoch.share[part]
        return mix(images, others.flip(0), share), mix(labels, other_labels.flip(0), share)

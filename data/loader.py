"""The loader: batches of one split, augmented and normalised on the training device.

The complete split lives on the training device as one uint8 tensor. A gather crops and flips each
batch, and a few tensor operations normalise it there (`augment.py`). There are no worker processes
and no per-image Python.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.augment import Augmentation, cutout, mix, source_indices, within
from data.batch_files import DataError
from data.cifar10 import CLASSES, Split


@dataclass(frozen=True)
class _Epoch:
    """Where the pixels of each image of an epoch come from, and what is blanked and mixed; on the
    device, in the order of the epoch."""

    index: Tensor  # (N,): the image's index in the split
    rows: Tensor  # (N, H) int32: index of the first pixel of each row's source row in the split
    columns: Tensor  # (N, W) int32: offset of each column from that pixel
    cut_rows: Tensor  # (N, H) of the images' dtype: 1 inside the cutout, else 0
    cut_columns: Tensor  # (N, W) likewise
    share: Tensor  # (N,): share of the second image in mixup


def _generator(stream: int, seed: int, epoch: int) -> torch.Generator:
    """A CPU generator for (seed, epoch). Neighbouring seeds and epochs are independent."""
    state = np.random.SeedSequence((stream, epoch, seed)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _check(split: Split, batch_size: int, seed: int, world_size: int) -> None:
    """Raises DataError if these values are invalid together."""
    if batch_size < 1:
        raise DataError(f"batch size {batch_size}: choose 1 or more")
    if batch_size > len(split):
        raise DataError(
            f"--batch-size {batch_size}: choose 1 to {len(split)}, the number of images in the"
            f" {split.name} split"
        )
    if batch_size < world_size:
        raise DataError(
            f"--batch-size {batch_size}: choose {world_size} or more, one image per process"
        )
    if seed < 0:
        raise DataError(f"seed {seed}: choose 0 or more")


class Loader:
    """Batches of one split: an iterable of (images, labels) with a length.

    images: (N, 3, 32, 32), normalised, channels_last, of `dtype`; labels: (N,) int64, or with mixup
    (N, 10) float32, the share of each class; both on `device`. The last batch may be shorter. Order
    and augmentation depend only on (seed, epoch), not on the device: all random numbers of an epoch
    are drawn on the CPU before its first batch. By default all images come as they are, in their
    order, as an evaluation wants them. After `mixup_epochs` epochs (None: never) the shares of
    mixup are 0, and the labels keep their form.

    If `world_size` processes train together, each has a loader with its own `rank` and takes its
    part of every batch. Together the parts are the batch of one process; their sizes differ by at
    most one, and some are empty if the last batch is very short. Batch size, length and `images`
    are those of all processes together.

    The split is copied to the device once (3 kB per image); `split` itself is not kept.

    Raises DataError for a batch size below 1, below the number of processes or above the split's,
    and for a negative seed.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mixup_epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(split, batch_size, seed, world_size)
        self.batch_size = batch_size
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.device = torch.device(device)
        self.dtype = dtype
        self.shuffle = shuffle
        self.mixup_epochs = mixup_epochs
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

        self._size = split.images.shape[-1]
        self._pixels = self._table(split.images)
        labels = split.labels.to(self.device)
        mixed = self.augmentation.mixup > 0
        self._labels = F.one_hot(labels, len(CLASSES)).float() if mixed else labels
        # (pixel / 255 - mean) / std = (pixel - shift) * scale, as in augment.normalize.
        self._shift = self._per_pixel(255 * torch.tensor(mean, dtype=torch.float32))
        self._scale = self._per_pixel(1 / (255 * torch.tensor(std, dtype=torch.float32)))

    def _table(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N * H * W + 1, C) on the device: all pixels, then a black one."""
        n, channels, height, width = images.shape
        table = torch.zeros(
            (n * height * width + 1, channels), dtype=images.dtype, device=self.device
        )
        table[:-1].view(n, height, width, channels).copy_(images.permute(0, 2, 3, 1))
        return table

    def _per_pixel(self, channels: Tensor) -> Tensor:
        """(C,) -> (1, H, W, C): broadcasting three numbers over images that are channels_last
        would make the innermost loop three elements long."""
        return channels.to(self.device).repeat(1, self._size, self._size, 1)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Iterate over `epoch` from now on, from batch `first_batch`. Skipped batches are not
        computed, and do not change the others."""
        self.epoch = epoch
        self.first_batch = first_batch

    @property
    def images(self) -> int:
        """Number of images in an epoch."""
        return len(self._labels)

    def first_of_each_class(self) -> tuple[Tensor, Tensor]:
        """The first image of each class in the split, as it is, uint8 (M, 3, 32, 32), and the
        classes (M,) in ascending order; both on the CPU."""
        labels = (self._labels.argmax(1) if self._labels.ndim == 2 else self._labels).cpu()
        classes = labels.unique()
        first = torch.stack([(labels == label).nonzero()[0, 0] for label in classes])
        images = self._pixels[:-1].view(-1, self._size, self._size, 3).permute(0, 3, 1, 2)
        return images[first.to(self.device)].cpu(), classes

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._draw(self.epoch)
        for batch in range(self.first_batch, len(self)):
            yield self._batch(epoch, batch)

    def _span(self, batch: int) -> tuple[int, int]:
        """The position of a batch's first image in the epoch, and its number of images."""
        start = batch * self.batch_size
        return start, min(self.batch_size, self.images - start)

    def part(self, batch: int) -> slice:
        """The positions in the epoch of this process's part of a batch; the first ranks have the
        larger parts."""
        start, size = self._span(batch)
        first, end = (-(-size * rank // self.world_size) for rank in (self.rank, self.rank + 1))
        return slice(start + first, start + end)

    def loss_weights(self) -> Iterator[float]:
        """For each batch, a factor on the mean loss of this process's part, so that the mean of the
        gradients over the processes is the gradient of the complete batch's mean loss. It is 1 if
        all parts are equal."""
        for batch in range(self.first_batch, len(self)):
            part, (_, size) = self.part(batch), self._span(batch)
            yield (part.stop - part.start) * self.world_size / size

    def _draw(self, epoch: int) -> _Epoch:
        """Draw the random numbers of an epoch, on the CPU, and prepare on the device all that does
        not need the pixels, for the complete epoch at once: on a GPU this costs no more than one
        batch's operations."""
        n, size, augmentation = self.images, self._size, self.augmentation
        padding, mode = augmentation.crop_padding, augmentation.padding_mode
        generator = _generator(0, self.seed, epoch)

        def draw(count: int) -> Tensor:
            return torch.randint(count, (n,), generator=generator)

        index = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        top, left = (draw(2 * padding + 1) - padding for _ in range(2))
        # The centre falls on any pixel, so the square is cut at the border as often as it may be.
        cut_top, cut_left = (draw(size) - augmentation.cutout // 2 for _ in range(2))
        coin = draw(2) == 1
        if augmentation.flip == "alternating":
            # Jordan 2024 (airbench, https://arxiv.org/abs/2404.00498): an image's first coin
            # counts, and every other epoch reverses it.
            first = torch.randint(2, (n,), generator=_generator(1, self.seed, 0)) == 1
            coin = first[index] ^ (epoch % 2 == 1)
        share = augmentation.mixup * torch.rand(n, generator=generator)
        if self.mixup_epochs is not None and epoch >= self.mixup_epochs:
            share.zero_()
        drawn = (index, top, left, cut_top, cut_left, coin, share)
        index, top, left, cut_top, cut_left, coin, share = (x.to(self.device) for x in drawn)
        rows = source_indices(top, size, mode)
        columns = source_indices(left, size, mode, None if augmentation.flip == "none" else coin)
        black = len(self._pixels) - 1  # offsets past the end of the table are clamped to it
        start = size * size * index.to(torch.int32)[:, None]
        return _Epoch(
            index,
            torch.where(rows < 0, black, start + size * rows),
            torch.where(columns < 0, black, columns),
            within(cut_top, augmentation.cutout, size).to(self.dtype),
            within(cut_left, augmentation.cutout, size).to(self.dtype),
            share,
        )

    def _augmented(self, epoch: _Epoch, part: slice) -> tuple[Tensor, Tensor]:
        places = epoch.rows[part, :, None] + epoch.columns[part, None, :]  # (N, H, W)
        if self.augmentation.crop_padding and self.augmentation.padding_mode == "zeros":
            places.clamp_(max=len(self._pixels) - 1)
        # index_select copies whole pixels; plain indexing would go number by number.
        pixels = self._pixels.index_select(0, places.flatten()).view(*places.shape, 3)
        pixels = pixels.float().sub_(self._shift).mul_(self._scale)
        images = pixels.to(self.dtype).contiguous().permute(0, 3, 1, 2)
        if self.augmentation.cutout:
            images = cutout(images, epoch.cut_rows[part], epoch.cut_columns[part])
        return images, self._labels.index_select(0, epoch.index[part])

    def example(self, batch: int) -> tuple[Tensor, Tensor]:
        """Batch number `batch` of epoch 0, with the shapes, memory format and dtypes that it has in
        every epoch."""
        return self._batch(self._draw(0), batch)

    def _batch(self, epoch: _Epoch, batch: int) -> tuple[Tensor, Tensor]:
        part = self.part(batch)
        images, labels = self._augmented(epoch, part)
        if not self.augmentation.mixup:
            return images, labels
        # The order is random, so an image's partner can be the one at the same distance from the
        # other end of the batch: a single process has already augmented it.
        start, size = self._span(batch)
        partners = slice(2 * start + size - part.stop, 2 * start + size - part.start)
        others, other_labels = (
            (images, labels) if partners == part else self._augmented(epoch, partners)
        )
        share = epoch.share[part]
        return mix(images, others.flip(0), share), mix(labels, other_labels.flip(0), share)

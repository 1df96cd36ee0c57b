"""Each augmentation against an oracle, image by image."""

import numpy as np
import pytest
import torch
from fakes import is_channels_last, random_images

import data
from data import augment


@pytest.mark.parametrize("mode, numpy_mode", [("reflect", "reflect"), ("zeros", "constant")])
@pytest.mark.parametrize("padding", [0, 1, 4, 31])
def test_source_indices_against_numpy(mode, numpy_mode, padding):
    """Every crop of a padded row of 32 pixels, as it is and in reverse."""
    pixels = np.arange(1, 33)  # 0 is black
    padded = np.pad(pixels, padding, mode=numpy_mode)
    starts = torch.arange(2 * padding + 1) - padding
    places = augment.source_indices(starts, 32, mode, starts < 9)
    assert places.shape == (2 * padding + 1, 32) and places.dtype == torch.int32
    for i, (start, place) in enumerate(zip(starts.tolist(), places.numpy(), strict=True)):
        expected = padded[i : i + 32]
        shown = np.where(place < 0, 0, pixels[place])
        assert np.array_equal(shown, expected[::-1] if start < 9 else expected)
    straight = augment.source_indices(starts, 32, mode)
    reverse = augment.source_indices(starts, 32, mode, torch.ones_like(starts, dtype=torch.bool))
    assert torch.equal(straight, reverse.flip(1))


def test_mix_by_hand():
    images, others = torch.tensor([[0.0, 8.0], [2.0, 2.0]]), torch.tensor([[4.0, 0.0], [6.0, 6.0]])
    mixed = augment.mix(images, others, torch.tensor([0.25, 0.0]))
    assert mixed.tolist() == [[1.0, 6.0], [2.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_cutout_against_slicing(size, dtype):
    images = torch.randn(64, 3, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    generator = torch.Generator().manual_seed(size)
    top = torch.randint(-size, 33, (64,), generator=generator)  # some hang over, some are outside
    left = torch.randint(-size, 33, (64,), generator=generator)
    rows, columns = (augment.within(start, size, 32).to(dtype) for start in (top, left))
    blanked = augment.cutout(images, rows, columns)
    for i in range(64):
        y, x = int(top[i]), int(left[i])
        expected = images[i].clone()
        expected[:, max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = 0
        assert torch.equal(blanked[i], expected)
    assert torch.equal(images, before) and is_channels_last(blanked)


def test_normalize_against_the_definition():
    images = random_images(4, channels_last=True)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (data.MEAN, data.STD))
    normalized = data.normalize(images, mean, std)
    expected = np.empty(images.shape)
    for channel in range(3):
        pixels = images[:, channel].numpy() / 255
        expected[:, channel] = (pixels - data.MEAN[channel]) / data.STD[channel]
    assert normalized.dtype == torch.float32 and is_channels_last(normalized)
    error = (normalized.double() - torch.from_numpy(expected)).abs()
    # One rounding to the precision of float32, no more.
    assert (error.numpy() <= 0.51 * torch.finfo(torch.float32).eps * np.abs(expected) + 1e-6).all()

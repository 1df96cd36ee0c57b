"""Each augmentation against an oracle, image by image."""

import math

import numpy as np
import pytest
import torch
from fakes import error_of, is_channels_last, random_images

import data
from data import Augmentation, augment


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
    mixed = data.mix(images, others, torch.tensor([0.25, 0.0]))
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
    blanked = data.cutout(images, rows, columns)
    for i in range(64):
        y, x = int(top[i]), int(left[i])
        expected = images[i].clone()
        expected[:, max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = 0
        assert torch.equal(blanked[i], expected)
    assert torch.equal(images, before) and is_channels_last(blanked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalize_against_the_definition(dtype):
    images = random_images(4, channels_last=True)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (data.MEAN, data.STD))
    normalized = data.normalize(images, mean, std, dtype)
    expected = np.empty(images.shape)
    for channel in range(3):
        pixels = images[:, channel].numpy() / 255
        expected[:, channel] = (pixels - data.MEAN[channel]) / data.STD[channel]
    assert normalized.dtype == dtype and is_channels_last(normalized)
    error = (normalized.double() - torch.from_numpy(expected)).abs()
    # One rounding to the precision of `dtype`, no more.
    assert (error.numpy() <= 0.51 * torch.finfo(dtype).eps * np.abs(expected) + 1e-6).all()


def rotated_slowly(image, angle):
    """An image (C, H, W) rotated about its centre, pixel by pixel; mirrored at its edge."""
    channels, height, width = image.shape
    result = np.zeros(image.shape)
    cos, sin = math.cos(angle), math.sin(angle)

    def pixel(y, x):
        y, x = (min(i, 2 * n - 1 - i) for i, n in ((y, height), (x, width)))
        return image[:, max(y, -1 - y), max(x, -1 - x)]

    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2, j - (width - 1) / 2
            y, x = sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
            top, left = math.floor(y), math.floor(x)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                result[:, i, j] += share * pixel(top + dy, left + dx)
    return result


def test_rotate_against_an_oracle():
    images = torch.randn(6, 3, 16, 16)
    angles = torch.tensor([0.0, math.pi / 2, math.pi, 0.2, -0.3, 1.0])
    rotated = augment.rotate(images, angles)
    assert torch.allclose(rotated[0], images[0], atol=1e-5)
    assert torch.allclose(rotated[2], images[2].flip(1, 2), atol=1e-4)
    for image, angle, shown in zip(images, angles, rotated, strict=True):
        expected = rotated_slowly(image.double().numpy(), float(angle))
        assert np.allclose(shown.numpy(), expected, atol=1e-4)


def test_recolour_by_hand():
    pixels = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]).view(2, 1, 1, 3)
    saturation, contrast = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])
    shown = augment.recolour(pixels, saturation, contrast, torch.tensor([1.0, -1.0]))
    assert shown.flatten(1).tolist() == [[1.5, 2.0, 2.5], [-2.0, -2.0, 4.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_padding": -1},
        {"crop_padding": 32},
        {"padding_mode": "edge"},
        {"flip": "vertical"},
        {"cutout": -1},
        {"cutout": 33},
        {"mixup": -0.1},
        {"mixup": 0.6},
        {"mixup": math.nan},
        {"rotation": -1},
        {"rotation": 181},
        {"colour": -0.1},
        {"colour": 1.1},
    ],
)
def test_augmentation_refuses(wrong):
    assert "choose" in error_of(Augmentation, **wrong)

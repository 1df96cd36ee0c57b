"""Each augmentation against an oracle, image by image."""

import math

import numpy as np
import pytest
import torch
from fakes import error_of, is_channels_last, random_images

import data
from data import Augmentation


@pytest.mark.parametrize("mode, numpy_mode", [("reflect", "reflect"), ("zeros", "constant")])
@pytest.mark.parametrize("padding", [0, 1, 4, 31])
def test_pad_against_numpy(mode, numpy_mode, padding):
    images = random_images(3)
    padded = data.pad(images, padding, mode)
    width = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    assert np.array_equal(padded.numpy(), np.pad(images.numpy(), width, mode=numpy_mode))
    assert is_channels_last(padded)


@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_against_slicing(channels_last):
    padded = random_images(81, 40, channels_last=channels_last)
    top, left = torch.arange(81) // 9, torch.arange(81) % 9  # every offset once
    cropped = data.crop(padded, top, left, 32)
    for i in range(81):
        y, x = int(top[i]), int(left[i])
        assert torch.equal(cropped[i], padded[i, :, y : y + 32, x : x + 32])
    assert is_channels_last(cropped) and cropped.dtype == torch.uint8


@pytest.mark.parametrize("channels_last", [False, True])
def test_flip_against_reversed_rows(channels_last):
    images = random_images(16, channels_last=channels_last)
    before = images.clone()
    mask = torch.arange(16) % 3 == 0
    flipped = data.flip(images, mask)
    for i in range(16):
        expected = images[i].numpy()[:, :, ::-1] if i % 3 == 0 else images[i].numpy()
        assert np.array_equal(flipped[i].numpy(), expected)
    assert torch.equal(images, before)
    assert is_channels_last(flipped) == channels_last


def test_mix_by_hand():
    images, others = torch.tensor([[0.0, 8.0], [2.0, 2.0]]), torch.tensor([[4.0, 0.0], [6.0, 6.0]])
    mixed = data.mix(images, others, torch.tensor([0.25, 0.0]))
    assert mixed.tolist() == [[1.0, 6.0], [2.0, 2.0]]


@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_cutout_against_slicing(size):
    images = 1 + torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    generator = torch.Generator().manual_seed(size)
    top = torch.randint(-size, 33, (64,), generator=generator)  # some hang over, some are outside
    left = torch.randint(-size, 33, (64,), generator=generator)
    blanked = data.cutout(images, top, left, size)
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
    ],
)
def test_augmentation_refuses(wrong):
    assert "choose" in error_of(Augmentation, **wrong)

"""The loader: what an epoch shows, in which order, and to which process."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import error_of, is_channels_last, random_images

import data
from data import Augmentation, Loader, Split


def numbered_split(n):
    """Images whose labels are their places in the split."""
    return Split(random_images(n), torch.arange(n), "train", "cifar10")


def loader(split, batch_size=16, augmentation=None, shuffle=False, seed=0, **changes):
    values = {"device": "cpu", "mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    values |= {"dtype": torch.float32, "shuffle": shuffle} | changes  # pixels keep their values
    return Loader(split, batch_size, augmentation=augmentation, seed=seed, **values)


def epoch(loader, *where):
    if where:
        loader.set_epoch(*where)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


FULL = Augmentation(crop_padding=4, padding_mode="reflect", flip="alternating", cutout=8)
MIXED = dataclasses.replace(FULL, mixup=0.5)


def test_loader_without_augmentation_gives_the_split_in_order():
    split = numbered_split(50)
    batches = list(loader(split, 16, mean=data.MEAN, std=data.STD))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    images = torch.cat([images for images, _ in batches])
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (data.MEAN, data.STD))
    assert torch.allclose(images, (split.images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


@pytest.mark.parametrize(
    "n, batch_size, length", [(50, 16, 4), (48, 16, 3), (16, 16, 1), (3, 1, 3)]
)
def test_loader_has_a_length(n, batch_size, length):
    batches = loader(numbered_split(n), batch_size)
    assert len(batches) == len(list(batches)) == length


@pytest.mark.parametrize("augmentation", [None, FULL, Augmentation(0, "zeros", "none", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loader_batches_are_channels_last_and_of_the_dtype(augmentation, dtype):
    for images, labels in loader(numbered_split(40), 32, augmentation, True, dtype=dtype):
        assert images.dtype == dtype and is_channels_last(images)
        assert images.shape[1:] == (3, 32, 32) and labels.dtype == torch.int64


def test_loader_shuffles_every_epoch_anew():
    batches = loader(numbered_split(200), shuffle=True)
    orders = [epoch(batches, number)[1].tolist() for number in range(3)]
    assert all(sorted(order) == list(range(200)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(200))


def test_loader_depends_on_seed_and_epoch_alone():
    split = numbered_split(100)
    first = loader(split, augmentation=FULL, shuffle=True, seed=5)
    images, labels = epoch(first, 7)
    torch.manual_seed(123)  # nobody's random state matters
    epoch(first, 2)
    for again in (first, loader(split, augmentation=FULL, shuffle=True, seed=5)):
        for _ in range(2):  # nor how often it was iterated
            other_images, other_labels = epoch(again, 7)
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    assert not torch.equal(epoch(first, 8)[1], labels)
    other_seed = loader(split, augmentation=FULL, shuffle=True, seed=6)
    assert not torch.equal(epoch(other_seed, 7)[1], labels)
    # Seed and epoch do not stand in for each other either.
    assert not torch.equal(epoch(other_seed, 5)[1], epoch(first, 6)[1])


@pytest.mark.parametrize("first_batch", [0, 1, 3, 6, 7])
def test_first_batch_skips(first_batch):
    batches = loader(numbered_split(100), 16, FULL, shuffle=True)
    batches.set_epoch(4)
    whole = list(batches)
    batches.set_epoch(4, first_batch)
    rest = list(batches)
    assert len(rest) == len(whole) - first_batch and len(batches) == len(whole)
    for (images, labels), (other_images, other_labels) in zip(
        rest, whole[first_batch:], strict=True
    ):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    batches.set_epoch(4)
    assert len(list(batches)) == len(whole)


def squares_of(image, padding, mode):
    """{bytes: (top, left, flipped)} of every crop of an image (3, 32, 32), slowly."""
    width = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image.numpy(), width, mode="reflect" if mode == "reflect" else "constant")
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            square = padded[:, top : top + 32, left : left + 32]
            found[square.tobytes()] = (top, left, False)
            found[square[:, :, ::-1].tobytes()] = (top, left, True)
    return found


def recognise(split, augmentation, number, seed=0):
    """What the loader did to each image of an epoch, found by trying everything."""
    images, labels = epoch(loader(split, 32, augmentation, shuffle=True, seed=seed), number)
    done = {}
    for image, label in zip(images.round().to(torch.uint8), labels.tolist(), strict=True):
        padding, mode = augmentation.crop_padding, augmentation.padding_mode
        done[label] = squares_of(split.images[label], padding, mode)[image.numpy().tobytes()]
    assert len(done) == len(split)
    return done


def flips_of(split, augmentation, number, seed=0):
    """Whether each image of the split, in its order, is shown flipped."""
    done = recognise(split, augmentation, number, seed)
    return [done[i][2] for i in range(len(split))]


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_loader_crops_everywhere_and_flips_half(mode):
    done = recognise(numbered_split(200), Augmentation(4, mode, "random", 0), 0)
    tops, lefts, flips = (Counter(values) for values in zip(*done.values(), strict=True))
    assert set(tops) == set(lefts) == set(range(9)) and max(tops.values()) < 45
    assert 70 < flips[True] < 130
    assert len(set(done.values())) > 80  # of 162: the three are drawn independently


def test_random_flip_is_drawn_every_epoch():
    split, augmentation = numbered_split(100), Augmentation(0, "zeros", "random", 0)
    flips = [flips_of(split, augmentation, number) for number in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert 25 < sum(x != y for x, y in zip(flips[a], flips[b], strict=True)) < 75


def test_alternating_flip_shows_every_other_epoch_the_other_side():
    split, augmentation = numbered_split(100), Augmentation(0, "zeros", "alternating", 0)
    first, second, third = (flips_of(split, augmentation, number) for number in range(3))
    assert 25 < sum(first) < 75
    assert second == [not flipped for flipped in first] and third == first
    assert flips_of(split, augmentation, 0, seed=1) != first


def test_no_flip():
    done = recognise(numbered_split(50), Augmentation(4, "reflect", "none", 0), 0)
    assert not any(flipped for _, _, flipped in done.values())


@pytest.mark.parametrize("size", [8, 5])
def test_loader_cuts_out_squares_with_centres_anywhere(size):
    images = torch.full((3000, 3, 32, 32), 255, dtype=torch.uint8)
    split = Split(images, torch.arange(3000), "train", "cifar10")
    blank = epoch(loader(split, 500, Augmentation(0, "zeros", "none", size)))[0] == 0
    assert (blank == blank[:, :1]).all()  # the same square in each channel
    rows, columns = blank[:, 0].any(2), blank[:, 0].any(1)  # (N, 32)
    assert torch.equal(blank[:, 0], rows[:, :, None] & columns[:, None, :])  # a rectangle
    for side in (rows, columns):
        heights = side.sum(1)
        assert set(heights.tolist()) == set(range(size - size // 2, size + 1))  # cut by the border
        assert (heights == size).float().mean() > 0.7
        # Every pixel is a centre; those within half a side of a border are blanked less often.
        assert (side.float().mean(0)[size:-size] - size / 32).abs().max() < 0.05


def test_loader_blanks_with_the_mean():
    images, _ = next(
        iter(loader(numbered_split(8), 8, Augmentation(0, "zeros", "none", 32), mean=data.MEAN))
    )
    assert ((images == 0).flatten(1).sum(1) >= 3 * 16 * 16).all()


def test_loader_mixes_each_image_and_its_label_with_another():
    """The partner stands as far from the end of the batch; here three batches, the last short."""
    plain, mixed = (dataclasses.replace(FULL, mixup=share) for share in (0.0, 0.4))
    split = numbered_split(40)
    split = dataclasses.replace(split, labels=split.labels % 10)
    shares = []
    batches = zip(
        loader(split, 16, plain, shuffle=True), loader(split, 16, mixed, shuffle=True), strict=True
    )
    for (images, labels), (mixed_images, targets) in batches:
        assert targets.shape == (len(labels), 10) and targets.dtype == torch.float32
        assert is_channels_last(mixed_images)
        for i, label in enumerate(labels.tolist()):
            j = len(labels) - 1 - i
            share = (mixed_images[i] - images[i]).mean() / (images[j] - images[i]).mean()
            expected = (1 - share) * images[i] + share * images[j]
            torch.testing.assert_close(mixed_images[i], expected, atol=0.05, rtol=0)
            expected = (1 - share) * F.one_hot(labels[i], 10) + share * F.one_hot(labels[j], 10)
            torch.testing.assert_close(targets[i], expected, atol=0.02, rtol=0)
            assert label == int(labels[j]) or targets[i].argmax() == label
            shares.append(float(share))
    assert 0 <= min(shares) < 0.05 and 0.35 < max(shares) <= 0.401
    assert len({round(share, 4) for share in shares}) > 35


def test_mixup_ends_after_its_epochs_and_nothing_else_changes():
    split = numbered_split(40)
    split = dataclasses.replace(split, labels=split.labels % 10)
    mixed, ending = (loader(split, 16, MIXED, True, mixup_epochs=last) for last in (None, 2))
    for one, other in zip(epoch(mixed, 1), epoch(ending, 1), strict=True):
        assert torch.equal(one, other)
    images, labels = epoch(loader(split, 16, FULL, True), 2)
    shown, targets = epoch(ending, 2)
    assert torch.equal(shown, images) and torch.equal(targets, F.one_hot(labels, 10).float())
    assert not torch.equal(epoch(mixed, 2)[0], images)


@pytest.mark.parametrize("n", [37, 33])  # of 33 the last batch has one image, and some parts none
@pytest.mark.parametrize("world_size", [2, 3])
def test_parts_of_a_mixed_batch_make_the_whole(world_size, n):
    split = numbered_split(n)
    split = dataclasses.replace(split, labels=split.labels % 10)
    whole = list(loader(split, 16, MIXED, shuffle=True))
    parts = [
        loader(split, 16, MIXED, shuffle=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for (images, labels), *others in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in others]), images)
        assert torch.equal(torch.cat([part for _, part in others]), labels)


def test_loader_leaves_the_split_alone():
    split = numbered_split(32)
    before = split.images.clone()
    for augmentation in (None, FULL, Augmentation(0, "zeros", "random", 8)):
        list(loader(split, 8, augmentation, shuffle=True))
    assert torch.equal(split.images, before)


def test_loader_refuses():
    split = numbered_split(10)
    message = error_of(loader, split, 11)
    assert "--batch-size 11: choose 1 to 10, the number of images in the train split" in message
    assert "choose 1 or more" in error_of(loader, split, 0)
    assert "choose 1 or more" in error_of(loader, split, -4)
    assert "choose 0 or more" in error_of(loader, split, 1, seed=-1)
    assert len(loader(split, 10)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loader_gives_the_same_on_the_gpu():
    split = numbered_split(100)
    images, labels = epoch(loader(split, augmentation=FULL, shuffle=True), 3)
    gpu = loader(split, augmentation=FULL, shuffle=True, device="cuda")
    gpu_images, gpu_labels = epoch(gpu, 3)
    assert gpu_images.is_cuda and gpu_labels.is_cuda
    assert torch.equal(gpu_images.cpu(), images) and torch.equal(gpu_labels.cpu(), labels)

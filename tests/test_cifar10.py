"""What is read from the files: both formats, verified; the splits; the sample.

Tests of the real CIFAR-10 look for it in $CIFAR10_DIR, in data/raw and beside the repository, and
are skipped where it is not.
"""

import csv
import os
import pickle
import shutil
import struct
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from fakes import (
    BATCHES,
    FAKE_BATCH,
    error_of,
    md5,
    python2_pickle,
    same,
)
from PIL import Image

import data
from data import batch_files, cifar10


def test_normalisation_constants_are_those_of_the_training_images(real):
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        counts = torch.bincount(real.images[:, channel].flatten(), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
        assert data.MEAN[channel] == pytest.approx(mean.item(), abs=5e-6)
        assert data.STD[channel] == pytest.approx(std.item(), abs=5e-6)


def test_real_splits(real, real_directory):
    train = data.load("cifar10", real_directory, "train")
    val = data.load("cifar10", real_directory, "val")
    assert train.images.shape == (45_000, 3, 32, 32)
    assert val.images.shape == (5_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [4500] * 10
    assert torch.bincount(val.labels).tolist() == [500] * 10
    train_indices, val_indices = cifar10.split_indices(real.labels.numpy())
    assert torch.equal(real.images[train_indices], train.images)
    assert torch.equal(real.images[val_indices], val.images)
    # The split of the released weights: it must never move.
    assert md5(val_indices.astype("<i8").tobytes()) == "812cc58fbf5a0641ac752e48411dc67b"


# ------------------------------------------------------------------------------------------ formats


def test_both_formats_give_the_same_tensors(fake, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fake.write_binary(tmp_path / "a")
    fake.write_python(tmp_path / "b")
    for name, count in (("train", 80), ("val", 20), ("train+val", 100), ("test", 20)):
        a = data.load("cifar10", tmp_path / "a", name)
        b = data.load("cifar10", tmp_path / "b", name)
        assert same(a, b)
        assert a.images.shape == (count, 3, 32, 32) and a.images.dtype == torch.uint8
        assert a.labels.shape == (count,) and a.labels.dtype == torch.int64
        assert a.images.is_contiguous() and len(a) == count
        assert (a.name, a.source) == (name, "cifar10")
    everything = data.load("cifar10", tmp_path / "a", "train+val")
    assert torch.equal(everything.images, fake.images(*BATCHES[:5]))
    assert torch.equal(data.load("cifar10", tmp_path / "b", "test").images, fake.images(BATCHES[5]))


def test_the_folder_itself_may_be_named(fake, tmp_path, monkeypatch):
    for folder in (fake.write_binary(tmp_path), fake.write_python(tmp_path)):
        assert data.find("cifar10", folder, need=("train",)) == "cifar10"
        assert len(data.load("cifar10", str(folder), "train")) == 80
        monkeypatch.chdir(folder)
        assert len(data.load("cifar10", ".", "train")) == 80


def test_of_two_formats_the_one_that_has_the_split_is_read(fake, tmp_path):
    fake.write_binary(tmp_path, BATCHES[:5])
    fake.write_python(tmp_path, BATCHES[1:])
    assert data.find("auto", tmp_path, need=("train", "test")) == "cifar10"
    assert len(data.load("cifar10", tmp_path, "train")) == 80
    assert len(data.load("cifar10", tmp_path, "test")) == 20


def test_only_the_files_of_the_split_are_read(fake, tmp_path):
    folder = fake.write_binary(tmp_path)
    (folder / "test_batch.bin").write_bytes(b"damaged")
    assert len(data.load("cifar10", tmp_path, "val")) == 20
    assert "test_batch is damaged" in error_of(data.load, "cifar10", tmp_path, "test")


# ------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize("position", [0, 1, 3073 * FAKE_BATCH - 1])
def test_one_flipped_bit_in_the_binary_version(fake, tmp_path, position):
    path = fake.write_binary(tmp_path) / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    message = error_of(data.load, "cifar10", tmp_path, "train")
    assert message.startswith("data_batch_3 is damaged")
    assert str(path) in message and "replace it" in message


def test_one_flipped_bit_in_the_python_version(fake, tmp_path):
    path = fake.write_python(tmp_path) / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = error_of(data.load, "cifar10", tmp_path, "val")
    assert message.startswith("data_batch_3 is damaged")
    assert str(path) in message and "replace it" in message


def test_content_is_verified_whatever_the_pickle(fake, tmp_path, monkeypatch):
    """A file whose own checksum is right still has to hold the official images."""
    records = fake.records["data_batch_2"].copy()
    records[5, 100] ^= 1
    content = python2_pickle({"labels": records[:, 0].tolist(), "data": records[:, 1:]})
    path = fake.write_python(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    monkeypatch.setitem(batch_files.PICKLES, "data_batch_2", md5(content))
    assert "data_batch_2 is damaged" in error_of(data.load, "cifar10", tmp_path, "train")


@pytest.mark.parametrize("layout", ["write_binary", "write_python"])
def test_truncated_file(fake, tmp_path, layout):
    folder = getattr(fake, layout)(tmp_path)
    path = next(folder.glob("data_batch_5*"))
    path.write_bytes(path.read_bytes()[:-1])
    message = error_of(data.load, "cifar10", tmp_path, "train")
    assert message.startswith("data_batch_5 is damaged") and str(path) in message


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled_unchecked(fake, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    content = pickle.dumps(Attack(str(trace)), protocol=2)
    (fake.write_python(tmp_path) / "data_batch_1").write_bytes(content)
    error_of(data.load, "cifar10", tmp_path, "train")
    # Nor does a file with the right checksum get to run code.
    monkeypatch.setitem(batch_files.PICKLES, "data_batch_1", md5(content))
    assert "does not hold a batch" in error_of(data.load, "cifar10", tmp_path, "train")
    assert not trace.exists()


@pytest.mark.parametrize("value", [[], {}, {"labels": [1], "data": [[1, 2]]}, {"labels": "x"}])
def test_a_pickle_of_something_else(fake, tmp_path, monkeypatch, value):
    content = python2_pickle(value)
    (fake.write_python(tmp_path) / "test_batch").write_bytes(content)
    monkeypatch.setitem(batch_files.PICKLES, "test_batch", md5(content))
    assert "test_batch is damaged" in error_of(data.load, "cifar10", tmp_path, "test")


def test_a_folder_in_the_place_of_a_file(fake, tmp_path):
    for layout in (fake.write_binary, fake.write_python):
        path = next(layout(tmp_path).glob("data_batch_1*"))
        path.unlink()
        path.mkdir()
        assert "data_batch_1" in error_of(data.load, "cifar10", tmp_path, "train")
        shutil.rmtree(path.parent)


def test_unknown_names():
    assert "choose one of train" in error_of(data.load, "sample", "x", "training")
    assert "choose one of train" in error_of(data.find, "sample", "x", need=("validation",))
    assert "choose cifar10 or sample" in error_of(data.load, "auto", "x", "train")
    assert "choose one of auto" in error_of(data.find, "imagenet", "x", need=())


# ------------------------------------------------------------------------------------------- splits


def test_split_is_disjoint_stratified_and_stable():
    labels = np.random.RandomState(1).permutation(np.arange(50_000) % 10)
    train, val = cifar10.split_indices(labels)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(50_000))
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    assert md5(val.astype("<i8").tobytes()) == "b77317dfa3979a2b201f934ed0a8f533"
    np.random.seed(3)  # nor does it depend on anybody's random state
    assert np.array_equal(cifar10.split_indices(labels)[1], val)


def test_train_and_val_are_the_parts_of_train_plus_val(fake, tmp_path):
    fake.write_binary(tmp_path)
    parts = data.load_splits("cifar10", tmp_path, ("train", "val", "train+val"))
    assert all(same(part, data.load("cifar10", tmp_path, part.name)) for part in parts)
    train, val, both = ({bytes(image.numpy()) for image in part.images} for part in parts)
    assert not train & val and train | val == both and len(both) == 100
    assert torch.bincount(parts[1].labels).tolist() == [2] * 10


def test_several_splits_read_each_file_once(fake, tmp_path, monkeypatch):
    fake.write_python(tmp_path)
    read, opened = cifar10._read_batch, []
    monkeypatch.setattr(cifar10, "_read_batch", lambda *a: opened.append(a[1]) or read(*a))
    data.load_splits("cifar10", tmp_path, ("train", "val", "test"))
    assert opened == BATCHES


# ------------------------------------------------------------------------------ the built-in sample


def sample_rows():
    with open(cifar10.SAMPLE_DIRECTORY / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_sample_splits():
    train, val, both = (data.load("sample", "unused", s) for s in ("train", "val", "train+val"))
    assert (train.name, train.source, both.name) == ("train", "sample", "train+val")
    assert train.images.shape == (2_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert train.images.is_contiguous() and train.labels.dtype == torch.int64
    assert torch.bincount(train.labels).tolist() == [200] * 10
    assert torch.bincount(val.labels).tolist() == [50] * 10
    assert torch.equal(both.images, torch.cat([train.images, val.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, val.labels]))
    assert "--eval-split val" in error_of(data.load, "sample", "unused", "test")


def test_sample_is_small_and_its_labels_are_consistent():
    sizes = [path.stat().st_size for path in cifar10.SAMPLE_DIRECTORY.iterdir()]
    assert sum(sizes) < 7_000_000 and max(sizes) < 2_000_000
    rows = sample_rows()
    assert len({row["index"] for row in rows}) == len(rows) == 2_500
    assert all(row["class"] == data.CLASSES[int(row["label"])] for row in rows)
    assert Counter(row["split"] for row in rows) == {"train": 2_000, "val": 500}


def test_sample_is_cut_out_of_the_official_images(real):
    train, val = (set(indices) for indices in cifar10.split_indices(real.labels.numpy()))
    for split, pool in (("train", train), ("val", val)):
        indices = [int(row["index"]) for row in sample_rows() if row["split"] == split]
        sample = data.load("sample", "unused", split)
        assert pool.issuperset(indices)
        assert torch.equal(sample.images, real.images[indices])
        assert torch.equal(sample.labels, real.labels[indices])


@pytest.fixture
def sample_copy(tmp_path, monkeypatch):
    directory = tmp_path / "sample"
    shutil.copytree(cifar10.SAMPLE_DIRECTORY, directory)
    monkeypatch.setattr(cifar10, "SAMPLE_DIRECTORY", directory)
    return directory


def test_sample_survives_other_line_endings(sample_copy):
    labels = sample_copy / "labels.csv"
    labels.write_bytes(labels.read_bytes().replace(b"\n", b"\r\n"))
    assert len(data.load("sample", "unused", "train+val")) == 2_500


def other_label(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,9", "train_0.png,0,8"))


def fewer_rows(directory):
    labels = directory / "labels.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:100]))


def no_rows(directory):
    (directory / "labels.csv").write_text("split,sheet\n")


def labels_of_noise(directory):
    (directory / "labels.csv").write_bytes(bytes(range(256)))


def label_is_no_number(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,9", "train_0.png,0,truck"))


def no_such_position(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,", "train_0.png,500,"))


def swapped_sheets(directory):
    shutil.copy(directory / "train_1.png", directory / "train_0.png")


def truncated_sheet(directory):
    sheet = directory / "train_0.png"
    sheet.write_bytes(sheet.read_bytes()[:1000])


def resize_header(directory, width, height):
    sheet = directory / "train_0.png"
    content = bytearray(sheet.read_bytes())
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    sheet.write_bytes(content)


def enormous_sheet(directory):
    resize_header(directory, 1 << 30, 1 << 30)


def large_sheet(directory):
    """Pillow warns from 89 million pixels on, and refuses twice as many."""
    resize_header(directory, 12_000, 12_500)


def enormous_file(directory):
    with open(directory / "train_0.png", "r+b") as sheet:
        sheet.truncate(1 << 40)  # sparse: it takes no space


def sheet_of_another_size(directory):
    Image.new("RGB", (800, 32)).save(directory / "train_0.png")


def grey_sheet(directory):
    Image.new("L", (800, 640)).save(directory / "train_0.png")


def not_a_png(directory):
    Image.new("RGB", (800, 640)).save(directory / "train_0.png", format="BMP")


def missing_sheet(directory):
    (directory / "train_0.png").unlink()


def missing_labels(directory):
    (directory / "labels.csv").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        other_label,
        fewer_rows,
        no_rows,
        labels_of_noise,
        label_is_no_number,
        no_such_position,
        swapped_sheets,
        truncated_sheet,
        enormous_sheet,
        large_sheet,
        enormous_file,
        sheet_of_another_size,
        grey_sheet,
        not_a_png,
        missing_sheet,
        missing_labels,
    ],
)
def test_damaged_sample(sample_copy, damage):
    damage(sample_copy)
    with warnings.catch_warnings(record=True) as warned:
        message = error_of(data.load, "sample", "unused", "train")
    assert not warned
    assert "built-in sample" in message and f"restore {sample_copy}" in message

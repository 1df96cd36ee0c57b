"""What stands in for CIFAR-10, for trained networks and for long trainings, and what several test
files compare with.

The fakes of CIFAR-10 have 20 images a batch.
"""

import dataclasses
import functools
import hashlib
import io
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data
import models
from data import DataError
from training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
FAKE_BATCH = 20  # images

load_splits = data.load_splits


@functools.cache
def load_few(count, *arguments):
    """`data.load_splits`, but the first `count` images of each."""
    return [
        dataclasses.replace(split, images=split.images[:count], labels=split.labels[:count])
        for split in load_splits(*arguments)
    ]


def hurry(monkeypatch, count=40):
    """Runs of train.py in this process have few images, draw nothing and print no summary."""
    import train  # which takes a second
    from training import report

    monkeypatch.setattr(data, "load_splits", functools.partial(load_few, count))
    monkeypatch.setattr(report, "summary", lambda *arguments: "")
    for name in ("draw", "draw_augmentation"):
        monkeypatch.setattr(train, name, lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def plain(**changes):
    """A recipe with nothing special."""
    recipe = Recipe(epochs=10, batch_size=8, optimizer="sgd", learning_rate=0.5, schedule="linear")
    return dataclasses.replace(recipe, **changes)


def exercise(module):
    """The module in evaluation mode, with no part of it at rest: fresh residual branches are
    multiplied by 0, and fresh BatchNorms shift nothing."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.2)
            torch.nn.init.normal_(norm.running_mean, std=0.2)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return module.eval()


class Operations(TorchDispatchMode):
    """Collects the names of the operations that PyTorch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def released(model, state_dict, **changes):
    """The content of a released checkpoint: of a network of this name, trained on the sample."""
    return {
        "model": model,
        "config": models.config_dict(model),
        "state_dict": state_dict,
        "normalization": data.NORMALIZATION,
        "classes": list(data.CLASSES),
        "data": {"source": "sample", "train_split": "train", "eval_split": "val"},
        "epoch": 0,
        "history": [],
        **changes,
    }


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings, as in the official files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Fake:
    """A small CIFAR-10: its records, and how to lay it out on disk in either format."""

    def __init__(self):
        random = np.random.RandomState(0)
        self.records = {}
        for batch in BATCHES:
            labels = random.permutation(np.arange(FAKE_BATCH) % 10)
            pixels = random.randint(0, 256, (FAKE_BATCH, 3072))
            self.records[batch] = np.hstack([labels[:, None], pixels]).astype(np.uint8)
        self.binary = {batch: records.tobytes() for batch, records in self.records.items()}
        self.python = {
            batch: python2_pickle(
                {
                    "batch_label": batch,
                    "labels": records[:, 0].tolist(),
                    "data": records[:, 1:],
                    "filenames": [f"{i}.png" for i in range(FAKE_BATCH)],
                }
            )
            for batch, records in self.records.items()
        }

    def write_binary(self, directory, batches=BATCHES):
        folder = directory / "cifar-10-batches-bin"
        folder.mkdir()
        for batch in batches:
            (folder / f"{batch}.bin").write_bytes(self.binary[batch])
        return folder

    def write_python(self, directory, batches=BATCHES):
        folder = directory / "cifar-10-batches-py"
        folder.mkdir()
        for batch in batches:
            (folder / batch).write_bytes(self.python[batch])
        return folder

    def images(self, *batches):
        records = np.concatenate([self.records[batch] for batch in batches])
        return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))


def md5(content):
    return hashlib.md5(content).hexdigest()


def error_of(function, *args, **kwargs):
    """The message of the DataError that a call raises: one line, without a word of Python's."""
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and "Error" not in message
    return message


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def random_images(n, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def noise(n):
    """A split of random images."""
    return data.Split(random_images(n), torch.arange(n) % 10, "train", "noise")


def is_channels_last(images):
    return images.is_contiguous(memory_format=torch.channels_last)

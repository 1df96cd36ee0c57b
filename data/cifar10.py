"""CIFAR-10 and the built-in sample as tensors: read their files, split them.

Each batch of 10,000 images, in either format, is converted to the bytes of the binary version.
Their MD5 must be the official one, so that both formats give the same tensors and no damaged image
reaches a network (`batch_files.py`). The repository contains a sample of 2,500 images (see
sample/README.md).
"""

import csv
import io
import pickle
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import batch_files
from data.batch_files import DataError

CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of the 50,000 training images' pixels in [0, 1]: red, green, blue.
MEAN = (0.49140, 0.48216, 0.44653)
STD = (0.24703, 0.24349, 0.26159)
NORMALIZATION: dict[str, Any] = {"mean": list(MEAN), "std": list(STD)}  # as checkpoints keep it

# A batch in the binary version: 10,000 records of a label byte and 3,072 pixel bytes (1,024 red,
# 1,024 green, 1,024 blue, row by row).
BATCH_SIZE = 10_000
SIZE = 32  # pixels, height and width
PIXELS = 3 * SIZE * SIZE
RECORD = 1 + PIXELS

VALIDATION_PER_CLASS = 500
VALIDATION_SEED = 2009

# The built-in sample, written by make_sample.py: MD5 of each split's records, in its order.
SAMPLE_DIRECTORY = Path(__file__).resolve().parent / "sample"
SAMPLE_SPLITS = {
    "train": "4837e4a15e19d2b395d4079dbdb27c49",
    "val": "8bca1339caea2f5e55eaaf47a6704699",
}
SAMPLE_LABELS = "labels.csv"
SAMPLE_FIELDS = ("split", "sheet", "position", "label", "class", "index")
SHEET_ROWS, SHEET_COLUMNS = 20, 25  # images on a sheet
SHEET_BYTES = LABEL_BYTES = 2_000_000  # larger files are refused
SHEETS = 5


@dataclass(frozen=True)
class Split:
    """One split, decoded: images (N, 3, 32, 32) uint8, labels (N,) int64, both on the CPU."""

    images: Tensor
    labels: Tensor
    name: str  # one of SPLITS
    source: str  # "cifar10" or "sample"

    def __len__(self) -> int:
        return len(self.labels)


def load(source: str, directory: str | Path, split: str) -> Split:
    """Read and verify one split.

    `source` "cifar10" reads the folders in `directory`: train has 45,000 images, val 5,000,
    train+val 50,000 and test 10,000. It reads only the files that it needs. "sample" reads the
    built-in sample: train 2,000, val 500, train+val 2,500. Raises DataError if the split is missing
    or its content is not the official one.
    """
    return load_splits(source, directory, (split,))[0]


def load_splits(source: str, directory: str | Path, splits: Sequence[str]) -> list[Split]:
    """Several splits, each as `load` returns it. The files that they share are read once."""
    for split in splits:
        batch_files.check_split(split)
    if source == "sample":
        return [_load_sample(split) for split in splits]
    if source != "cifar10":
        raise DataError(f"unknown data source {source!r}: choose cifar10 or sample")
    read: dict[bool, tuple[np.ndarray, np.ndarray]] = {}  # by whether it is the test batch
    loaded = []
    for split in splits:
        of_test = split == "test"
        if of_test not in read:
            folder = batch_files.folder_with(Path(directory), split)
            read[of_test] = _read_batches(folder, batch_files.batches_of(split))
        labels, pixels = read[of_test]
        if split in ("train", "val"):
            train, val = split_indices(labels)
            chosen = train if split == "train" else val
            labels, pixels = labels[chosen], pixels[chosen]
        images = torch.from_numpy(pixels).view(-1, 3, SIZE, SIZE)
        loaded.append(Split(images, torch.from_numpy(labels), split, source))
    return loaded


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (45,000 and 5,000, ascending) of the training images and the held-out images.

    `labels` (50,000) are those of the official training split in its official order. The
    held-out images are 500 of each class. NumPy promises never to change RandomState's stream,
    so the split is the same on every machine and with every version.
    """
    random = np.random.RandomState(VALIDATION_SEED)
    held_out = [
        random.permutation(np.flatnonzero(labels == label))[:VALIDATION_PER_CLASS]
        for label in range(len(CLASSES))
    ]
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), val), val


# ------------------------------------------------------------------------------ the two formats


def _read_batches(folder: Path, batches: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and pixels (N, 3,072) of these batches, whose MD5 are the values."""
    labels = np.empty(len(batches) * BATCH_SIZE, np.int64)
    pixels = np.empty((len(labels), PIXELS), np.uint8)
    for i, (batch, md5) in enumerate(batches.items()):
        part = slice(i * BATCH_SIZE, (i + 1) * BATCH_SIZE)
        records = _read_batch(folder, batch, md5)
        labels[part], pixels[part] = records[:, 0], records[:, 1:]
    return labels, pixels


def _read_batch(folder: Path, batch: str, md5: str) -> np.ndarray:
    """The records (10,000, 3,073) uint8 of one batch, verified."""
    path = folder / (batch + batch_files.SUFFIXES[folder.name])
    read = _read_binary if folder.name == batch_files.BINARY_FOLDER else _read_pickle
    try:
        content = read(path, batch)
    except OSError as error:
        raise DataError(
            f"cannot read {batch} from {path} ({error.strerror}); {batch_files.REMEDY}"
        ) from error
    batch_files.verify_content(content, path, batch, md5)
    return np.frombuffer(content, np.uint8).reshape(BATCH_SIZE, RECORD)


def _read_binary(path: Path, batch: str) -> bytes:
    size, expected = path.stat().st_size, BATCH_SIZE * RECORD
    if size != expected:
        raise DataError(
            f"{batch} is damaged: {path} has {size:,} bytes instead of {expected:,};"
            f" {batch_files.REMEDY}"
        )
    return path.read_bytes()


def _read_pickle(path: Path, batch: str) -> bytes:
    """One file of the python version, converted to the binary version's bytes. It is unpickled only
    after its checksum was verified."""
    content = batch_files.verified_pickle(path, batch)
    try:
        entry = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        labels = np.asarray(entry[b"labels"], np.uint8).reshape(-1, 1)
        return np.hstack([labels, entry[b"data"]]).tobytes()
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{batch} is damaged: {path} does not hold a batch; {batch_files.REMEDY}"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Allows only what an array of bytes needs, so that no file can run code."""

    ALLOWED = {
        ("_codecs", "encode"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),  # as NumPy 1 wrote it in the official files
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a batch")
        return super().find_class(module, name)


# ------------------------------------------------------------------------------ the built-in sample


def _load_sample(split: str) -> Split:
    if split == "test":
        raise DataError(
            "the built-in sample has no test images: score its validation split with"
            " --eval-split val (test.py: --split val)"
        )
    parts = [_read_sample(part) for part in SAMPLE_SPLITS if part in split.split("+")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(images, labels, split, "sample")


def _read_sample(split: str) -> tuple[Tensor, Tensor]:
    """Images and labels of one split of the sample, verified."""
    remedy = f"restore {SAMPLE_DIRECTORY} from the repository"
    try:
        if (SAMPLE_DIRECTORY / SAMPLE_LABELS).stat().st_size > LABEL_BYTES:
            raise DataError(f"{SAMPLE_LABELS} is larger than {LABEL_BYTES:,} bytes")
        with open(SAMPLE_DIRECTORY / SAMPLE_LABELS, newline="", encoding="ascii") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        names = {row["sheet"] for row in rows}
        if len(names) > SHEETS:
            raise DataError(f"{SAMPLE_LABELS} names more than {SHEETS} sheets")
        sheets = {name: _read_sheet(name) for name in sorted(names)}
        images = torch.stack([sheets[row["sheet"]][int(row["position"])] for row in rows])
        labels = torch.tensor([int(row["label"]) for row in rows])
    except DataError as error:
        raise DataError(f"the built-in sample is damaged: {error}; {remedy}") from error
    except OSError as error:
        raise DataError(
            f"cannot read the built-in sample ({error.filename}: {error.strerror}); {remedy}"
        ) from error
    except (csv.Error, LookupError, OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the built-in sample is damaged: its {SAMPLE_LABELS} cannot be read; {remedy}"
        ) from error
    if content_md5(images, labels) != SAMPLE_SPLITS[split]:
        raise DataError(
            f"the built-in sample is damaged: its {split} images or labels have changed; {remedy}"
        )
    return images, labels


def _read_sheet(name: str) -> Tensor:
    """The images (500, 3, 32, 32) uint8 of a sheet, row by row."""
    path = SAMPLE_DIRECTORY / Path(name).name
    size = (SHEET_COLUMNS * SIZE, SHEET_ROWS * SIZE)  # width, height
    try:
        if path.stat().st_size > SHEET_BYTES:
            raise DataError(f"{path.name} is larger than {SHEET_BYTES:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a large image, which is refused below
            # Opening reads no further than the header, which tells whether to decode the rest.
            image = Image.open(path, formats=("PNG",))
        with image:
            if image.size != size or image.mode != "RGB":
                raise DataError(f"{path.name} is not an RGB image of {size[0]} x {size[1]} pixels")
            sheet = np.asarray(image)  # (640, 800, 3)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path.name} cannot be read") from error
    grid = torch.tensor(sheet).view(SHEET_ROWS, SIZE, SHEET_COLUMNS, SIZE, 3)
    return grid.permute(0, 2, 4, 1, 3).reshape(-1, 3, SIZE, SIZE)


def content_md5(images: Tensor, labels: Tensor) -> str:
    """MD5 of images (N, 3, 32, 32) and labels (N,) as records of the binary version."""
    label_bytes = labels.numpy().astype(np.uint8)[:, None]
    return batch_files.md5(np.hstack([label_bytes, images.reshape(-1, PIXELS).numpy()]).tobytes())

"""Draw the built-in sample from CIFAR-10's official training split.

    python -m data.make_sample --data-dir DIR

writes `sample/` and prints the checksums that `data/cifar10.py` contains. The sample's training
images come from our `train` split and its validation images from our `val` split, so that a network
trained on either `train` split is never scored on an image it was trained on.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.batch_files import DEFAULT_DIRECTORY, DataError
from data.cifar10 import (
    CLASSES,
    SAMPLE_DIRECTORY,
    SAMPLE_FIELDS,
    SAMPLE_LABELS,
    SHEET_COLUMNS,
    SHEET_ROWS,
    SIZE,
    content_md5,
    load,
    split_indices,
)

SHEET_IMAGES = SHEET_ROWS * SHEET_COLUMNS
PER_CLASS = {"train": 200, "val": 50}
SEED = 2009


def choose(labels: np.ndarray) -> dict[str, np.ndarray]:
    """For each split of the sample, the ascending indices of its images in the official training
    split with these `labels`: the same number per class, from our split of that name."""
    random = np.random.RandomState(SEED)
    chosen = {}
    for split, indices in zip(("train", "val"), split_indices(labels), strict=True):
        of_class = [indices[labels[indices] == label] for label in range(len(CLASSES))]
        drawn = [random.permutation(members)[: PER_CLASS[split]] for members in of_class]
        chosen[split] = np.sort(np.concatenate(drawn))
    return chosen


def sheet(images: torch.Tensor) -> torch.Tensor:
    """Images (500, 3, 32, 32) row by row on one sheet (640, 800, 3)."""
    grid = images.view(SHEET_ROWS, SHEET_COLUMNS, 3, SIZE, SIZE)
    return grid.permute(0, 3, 1, 4, 2).reshape(SHEET_ROWS * SIZE, SHEET_COLUMNS * SIZE, 3)


def make(directory: Path, output: Path) -> dict[str, str]:
    """Write the sheets and `labels.csv` to `output`; returns the MD5 of each split's content."""
    official = load("cifar10", directory, "train+val")
    checksums = {}
    output.mkdir(parents=True, exist_ok=True)
    with open(output / SAMPLE_LABELS, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SAMPLE_FIELDS)
        for split, indices in choose(official.labels.numpy()).items():
            images, labels = official.images[indices], official.labels[indices]
            for first in range(0, len(indices), SHEET_IMAGES):
                name = f"{split}_{first // SHEET_IMAGES}.png"
                pixels = sheet(images[first : first + SHEET_IMAGES]).numpy()
                Image.fromarray(pixels).save(output / name, optimize=True)
                for position in range(SHEET_IMAGES):
                    label = int(labels[first + position])
                    index = int(indices[first + position])
                    writer.writerow([split, name, position, label, CLASSES[label], index])
            checksums[split] = content_md5(images, labels)
    return checksums


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the built-in sample from CIFAR-10.")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DIRECTORY, metavar="DIR")
    parser.add_argument("--output", type=Path, default=SAMPLE_DIRECTORY, metavar="DIR")
    arguments = parser.parse_args()
    try:
        checksums = make(arguments.data_dir, arguments.output)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for split, md5 in checksums.items():
        print(split, md5)


if __name__ == "__main__":
    main()

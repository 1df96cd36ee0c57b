"""CIFAR-10 and the built-in sample of it: found, verified, split, augmented and loaded."""

from data.augment import (
    FLIPS,
    MAX_COLOUR,
    MAX_CROP_PADDING,
    MAX_CUTOUT,
    MAX_MIXUP,
    MAX_ROTATION,
    PADDING_MODES,
    Augmentation,
    cutout,
    mix,
    normalize,
)
from data.batch_files import DEFAULT_DIRECTORY, SOURCES, DataError, find
from data.cifar10 import CLASSES, MEAN, NORMALIZATION, STD, Split, load, load_splits
from data.loader import Loader
from data.pictures import PictureError, read_picture

__all__ = [
    "CLASSES",
    "DEFAULT_DIRECTORY",
    "FLIPS",
    "MAX_COLOUR",
    "MAX_CROP_PADDING",
    "MAX_CUTOUT",
    "MAX_MIXUP",
    "MAX_ROTATION",
    "MEAN",
    "NORMALIZATION",
    "PADDING_MODES",
    "SOURCES",
    "STD",
    "Augmentation",
    "DataError",
    "Loader",
    "PictureError",
    "Split",
    "cutout",
    "find",
    "load",
    "load_splits",
    "mix",
    "normalize",
    "read_picture",
]

"""CIFAR-10 and the built-in sample of it: found, verified, split, augmented and loaded."""

from data.augment import FLIPS, PADDING_MODES, Augmentation, normalize
from data.batch_files import DEFAULT_DIRECTORY, SOURCES, DataError, find
from data.cifar10 import CLASSES, MEAN, NORMALIZATION, STD, Split, load, load_splits
from data.loader import Loader
from data.pictures import PictureError, read_picture

__all__ = [
    "CLASSES",
    "DEFAULT_DIRECTORY",
    "FLIPS",
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
    "find",
    "load",
    "load_splits",
    "normalize",
    "read_picture",
]

"""CIFAR-10 and the built-in sample of it: found, verified, split, augmented and loaded."""

from data.augment import (
    FLIPS,
    PADDING_MODES,
    Augmentation,
    Loader,
    crop,
    cutout,
    flip,
    mix,
    normalize,
    pad,
)
from data.cifar10 import (
    CLASSES,
    DEFAULT_DIRECTORY,
    MEAN,
    SOURCES,
    SPLITS,
    STD,
    DataError,
    Split,
    find,
    load,
)

__all__ = [
    "CLASSES",
    "DEFAULT_DIRECTORY",
    "FLIPS",
    "MEAN",
    "PADDING_MODES",
    "SOURCES",
    "SPLITS",
    "STD",
    "Augmentation",
    "DataError",
    "Loader",
    "Split",
    "crop",
    "cutout",
    "find",
    "flip",
    "load",
    "mix",
    "normalize",
    "pad",
]

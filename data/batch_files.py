"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) on disk: find its files,
download them, verify them.

Both official formats work: the python version (pickles) and the binary version. Each stores one
batch per file; `cifar10.py` reads them.
"""

import hashlib
import logging
import os
import tarfile
from contextlib import suppress
from pathlib import Path

SOURCES = ("auto", "cifar10", "sample")
SPLITS = ("train", "val", "train+val", "test")
DEFAULT_DIRECTORY = Path(__file__).resolve().parent / "raw"

# MD5 of each batch in the binary version; both formats are converted to it.
TRAIN_BATCHES = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
}
TEST_BATCHES = {"test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d"}

# MD5 of the python version's files, which are pickles. torchvision knows them, too, but takes
# nearly as long to import as PyTorch.
PICKLES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PICKLE_BYTES = 40_000_000  # a file has 31 million; a larger one is not even checksummed
BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
SUFFIXES = {BINARY_FOLDER: ".bin", PYTHON_FOLDER: ""}  # in the order of preference

REMEDY = "replace it with an intact copy, or remove its folder to have CIFAR-10 downloaded again"

log = logging.getLogger(__name__)


class DataError(Exception):
    """Data that is missing, damaged or invalid; the message is one line that says what to do."""


def find(
    source: str, directory: str | Path, *, need: tuple[str, ...], download_url: str | None = None
) -> str:
    """Make sure that the splits in `need` can be loaded; returns the source for `load`, "cifar10"
    or "sample".

    "cifar10" looks in `directory` and, if no CIFAR-10 is there, downloads the python version to it,
    from `download_url` if given (the URL of the archive, or of its folder with a slash at the end).
    "auto" does the same, but if the download fails, it logs why and falls back on the sample. The
    sample has no test images; `load` reports that, `find` does not.

    Raises DataError if the download fails, or if CIFAR-10 is on disk but lacks a file for `need`:
    an incomplete CIFAR-10 is never replaced by the sample.
    """
    if source not in SOURCES:
        raise DataError(f"unknown data source {source!r}: choose one of {', '.join(SOURCES)}")
    for split in need:
        check_split(split)
    if source == "sample":
        return source
    directory = Path(directory)
    if not on_disk(directory):
        try:
            _download(directory, download_url)
        except DataError as error:
            if source == "cifar10":
                raise
            log.warning("%s", error)
            return "sample"
    for split in need:
        folder_with(directory, split)
    return "cifar10"


# ----------------------------------------------------------------------------------- download


def _download(directory: Path, url: str | None) -> None:
    """Download the python version's folder into `directory`; DataError if that fails."""
    from torchvision.datasets import CIFAR10  # here, for the reason given at PICKLES

    from data.download import DownloadError, download, without_login

    url = url or CIFAR10.url
    if url.endswith("/"):
        url += CIFAR10.filename
    directory = _root(directory)
    try:
        download(url, directory)
    except (DownloadError, OSError, EOFError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"cannot download CIFAR-10 from {without_login(url)} to {directory} ({reason}): name a"
            " mirror with --download-url, a folder that holds it with --data-dir, or use"
            " --data sample"
        ) from error


# ------------------------------------------------------------------------------------- search


def check_split(split: str) -> None:
    """Raises DataError if there is no such split."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")


def batches_of(split: str) -> dict[str, str]:
    """The batches that hold a split, and the MD5 of each."""
    return TEST_BATCHES if split == "test" else TRAIN_BATCHES


def on_disk(directory: Path) -> dict[Path, list[str]]:
    """The folders of CIFAR-10 in `directory`, or `directory` itself, and the batches that each has
    a file for; in order of preference."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            directory.stat()  # raises OSError for a loop of links, which exists() does not
        if directory.exists() and not directory.is_dir():
            raise DataError(f"{directory} is not a folder: name the one that holds CIFAR-10")
        found = {}
        for name, suffix in SUFFIXES.items():
            folder = _root(directory) / name
            files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            present = [b for b in (*TRAIN_BATCHES, *TEST_BATCHES) if b + suffix in files]
            if present:
                found[folder] = present
        return found
    except OSError as error:
        raise DataError(
            f"cannot look for CIFAR-10 in {directory} ({error.strerror}): name another folder"
            " with --data-dir"
        ) from error


def _root(directory: Path) -> Path:
    """The folder that holds CIFAR-10's folder; `directory` may be either of them."""
    if directory.name in SUFFIXES:  # maybe a link to a folder of another name
        return directory.parent
    real = Path(os.path.realpath(directory))
    return real.parent if real.name in SUFFIXES else directory


def folder_with(directory: Path, split: str) -> Path:
    """The folder under `directory` that has the files of `split`; DataError if none has."""
    found = on_disk(directory)
    if not found:
        raise DataError(
            f"no CIFAR-10 in {directory}: put {PYTHON_FOLDER} or {BINARY_FOLDER} there, or name"
            " another folder with --data-dir"
        )
    missing = {
        folder: [
            batch + SUFFIXES[folder.name] for batch in batches_of(split) if batch not in present
        ]
        for folder, present in found.items()
    }
    folder = min(missing, key=lambda folder: len(missing[folder]))
    if not missing[folder]:
        return folder
    lack = f"{folder} lacks {', '.join(missing[folder])}"
    if split == "test":
        raise DataError(
            f"the test split is not on disk: {lack}; add it, or score the validation split with"
            " --eval-split val (test.py: --split val)"
        )
    raise DataError(
        f"the {split} split is not on disk: {lack}; add what is missing, or remove the folder to"
        " have CIFAR-10 downloaded again"
    )


# ------------------------------------------------------------------------------------- verify


def verified_pickle(path: Path, batch: str) -> bytes:
    """The content of a file of the python version, which is safe to unpickle: raises DataError if
    it does not have its official MD5."""
    content = b"" if path.stat().st_size > PICKLE_BYTES else path.read_bytes()
    if md5(content) != PICKLES[batch]:
        raise DataError(
            f"{batch} is damaged: {path} does not have the official MD5 {PICKLES[batch]}; {REMEDY}"
        )
    return content


def verify_content(content: bytes, path: Path, batch: str, expected: str) -> None:
    """Raises DataError if a batch's records, read from `path`, do not have this MD5."""
    if md5(content) != expected:
        raise DataError(
            f"{batch} is damaged: the content of {path} does not have the official MD5 {expected};"
            f" {REMEDY}"
        )


def md5(content: bytes) -> str:
    """The MD5 of `content`, as 32 hexadecimal digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()

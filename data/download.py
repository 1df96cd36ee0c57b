"""Download CIFAR-10's archive: at a minimum rate, verified, and complete or not at all.

torchvision has the archive's URL and MD5, but its download waits for a server forever and unpacks
in place, where a kill leaves half a data set.
"""

import base64
import logging
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ARCHIVE_BYTES = 170_498_071  # of cifar-10-python.tar.gz
MINIMUM_RATE = 100_000  # bytes a second, on average: a download takes 29 minutes at most
PATIENCE = 30.0  # seconds before the rate counts
SILENCE = 60.0  # seconds without a byte that end a transfer
CHUNK = 2**16  # bytes
SCHEMES = ("https", "http", "file")
PARTIAL = ".cifar-10-python.partial"  # the folder of an unfinished download

log = logging.getLogger(__name__)


class DownloadError(Exception):
    """The archive cannot be downloaded, or is not the official one."""


def download(url: str, directory: Path) -> None:
    """Download the archive at `url` and unpack CIFAR-10's python version into `directory`.

    `directory` is created, and removed again if the download fails. An intact archive that is
    already there is unpacked instead. The remains of a killed download are removed. If another
    process is downloading to the same folder, this one waits and uses its result.

    Args:
        url: https, http or file; a user name and a password in it are sent as Basic authorization.

    Raises:
        DownloadError: the archive cannot be downloaded, or is not the official one.
        OSError: it cannot be written.
    """
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            # Another process may have finished since this one has looked for the files.
            names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
            if not any((directory / CIFAR10.base_folder / name).exists() for name in names):
                _fetch_and_unpack(url, directory)
    finally:
        for folder in missing:
            with suppress(OSError):  # not empty: the download succeeded
                folder.rmdir()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Lock a folder against other downloads; waits for one."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is downloading CIFAR-10 to %s: waiting for it", directory)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _fetch_and_unpack(url: str, directory: Path) -> None:
    partial = directory / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        archive = directory / CIFAR10.filename
        if not check_integrity(archive, CIFAR10.tgz_md5):
            archive = partial / CIFAR10.filename
            _fetch(url, archive)
        extract_archive(archive, partial)
        (partial / CIFAR10.base_folder).rename(directory / CIFAR10.base_folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path` and verify its official MD5."""
    transfer = _Transfer(url, path)
    transfer.start()
    start = time.monotonic()
    # Without a terminal there is no bar.
    with tqdm(total=ARCHIVE_BYTES, unit="B", unit_scale=True, disable=None) as bar:
        try:
            while transfer.is_alive():
                transfer.join(0.05)
                _require_rate(transfer.received, time.monotonic() - start)
                bar.update(transfer.received - bar.n)
            bar.update(transfer.received - bar.n)
        finally:
            transfer.stopped = True
    if transfer.error is not None:
        raise DownloadError(_reason(transfer.error)) from transfer.error
    if not check_integrity(path, CIFAR10.tgz_md5):
        raise DownloadError(f"the archive is corrupted: its MD5 is not {CIFAR10.tgz_md5}")


def _require_rate(received: int, seconds: float) -> None:
    """Raises DownloadError if `received` bytes are too few for that time."""
    if seconds > PATIENCE and received < MINIMUM_RATE * seconds:
        raise DownloadError(
            f"{received:,} bytes in {seconds:.0f} s are fewer than"
            f" {MINIMUM_RATE // 1000} kB a second"
        )


class _Transfer(threading.Thread):
    """Downloads a URL to a file in a thread, because a socket's timeout does not stop a server that
    sends a byte now and then."""

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(daemon=True)  # it may wait for its last byte when the program ends
        self.url, self.path = url, path
        self.received = 0  # bytes
        self.stopped = False
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with (
                urllib.request.urlopen(_request(self.url), timeout=SILENCE) as response,
                open(self.path, "wb") as file,
            ):
                while not self.stopped and (chunk := response.read1(CHUNK)):
                    self.received += len(chunk)
                    if self.received > ARCHIVE_BYTES:
                        raise DownloadError(
                            f"received more than the archive's {ARCHIVE_BYTES:,} bytes"
                        )
                    file.write(chunk)
        except Exception as error:  # a server can fail in any way
            self.error = error


def without_login(url: str) -> str:
    """The URL without user name and password, safe to print."""
    return _split(url)[0]


def _split(url: str) -> tuple[str, str]:
    """A URL without its user name and password, and these: "NAME:PASSWORD" or ""."""
    scheme, slashes, rest = url.partition("://")
    login = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
    return scheme + slashes + rest.removeprefix(login + "@"), login


def _request(url: str) -> urllib.request.Request:
    """The request for `url`; its user name and password are not sent to redirects."""
    address, login = _split(url)
    if not address.lower().startswith(tuple(scheme + "://" for scheme in SCHEMES)):
        raise DownloadError(f"a URL must begin with one of {'://, '.join(SCHEMES)}://")
    request = urllib.request.Request(address, headers={"User-Agent": "cifar10-under-100k"})
    if login:
        encoded = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _reason(error: Exception) -> str:
    """A short description of `error`, without Python's names."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "reason", error)) or type(error).__name__

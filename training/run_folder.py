"""The folder of a run: its two newest checkpoints, and a lock for its one writer."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from training.checkpoint import seal
from utils import RunError, make_folder, remove_leftovers, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LAST, PREVIOUS = "last.safetensors", "previous.safetensors"  # the newest, and the one before it
LOCK = ".lock"
_held: dict[Path, IO[bytes]] = {}  # the locks of this process, by folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a run's folder and be the only one to write to it, until the end or until death.

    The lock is the operating system's, which releases it whatever ends the process. What a killed
    process left half-written is removed.

    Raises:
        RunError: it cannot be created or written to, or another process holds it.
    """
    make_folder(folder)
    with open(folder / LOCK, "ab") as file:
        _lock(file, folder)
        remove_leftovers(folder)
        _held[folder] = file
        try:
            yield
        finally:
            del _held[folder]


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError) as error:
        raise RunError(
            f"another training writes to {folder}: wait for its end, or choose another --output"
        ) from error
    except OSError:
        pass  # a file system without locks: nothing can be promised there


def _check_lock(folder: Path) -> None:
    """RunError where the folder that was locked was removed: what has its name may be another's."""
    file = _held.get(folder)
    try:
        if file is None or os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
            return
    except FileNotFoundError:
        pass
    raise RunError(f"{folder} was removed while this training wrote to it: start it anew")


def claim(folder: Path, resumed: Path | None, source: Path | None) -> None:
    """Make sure that the (locked) folder is free for a new run or for going on with its own.

    Args:
        resumed: the checkpoint that the user asked for, None for a new run.
        source: the one that was intact, so that a damaged one never replaces it.

    Raises:
        RunError: the folder holds another run.
    """
    if resumed is None or resumed.resolve().parent != folder.resolve():
        if (folder / LAST).exists() or (folder / PREVIOUS).exists():
            raise RunError(f"{folder} already holds a run: resume it, or choose another --output")
    elif source is not None and source != resumed:
        os.replace(source, folder / LAST)


def save_latest(folder: Path, content: dict[str, Any]) -> None:
    """Save the newest checkpoint of a run; the one that was there is kept as the previous one.

    Raises:
        RunError: it cannot be written, or the folder is not the one that was locked any more; what
            was there is then untouched.
    """
    _check_lock(folder)
    write_atomically(folder / LAST, seal(content), keep_as=PREVIOUS)


def find_latest(folders: Iterable[Path]) -> Path | None:
    """Of all these folders of runs, the newest checkpoint to resume, or None."""
    found = [
        (path.stat().st_mtime, folder / LAST)
        for folder in folders
        for path in (folder / LAST, folder / PREVIOUS)
        if path.is_file()
    ]
    return max(found)[1] if found else None

"""The folder of a run: its two latest checkpoints, and a lock for its only writer."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from training.checkpoint import UnreadableError, load_checkpoint, serialize
from utils import RunError, make_folder, remove_leftovers, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LAST, PREVIOUS = "last.safetensors", "previous.safetensors"  # the latest, and the one before it
WEIGHTS = "weights.safetensors"
LOCK = ".lock"
_held: dict[Path, IO[bytes]] = {}  # the locks of this process, by folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a run's folder and hold its lock, so that no other process writes to it.

    The operating system releases the lock, however the process ends. Unfinished files of a killed
    process are removed.

    Raises:
        RunError: the folder cannot be created or written to, or another process holds its lock.
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
            f"another training is writing to {folder}: wait for it, or choose another --output"
        ) from error
    except OSError:
        pass  # a file system without locks: there is no protection


def _check_lock(folder: Path) -> None:
    """RunError if the locked folder was removed: one of that name may now be another run's."""
    file = _held.get(folder)
    try:
        if file is None or os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
            return
    except FileNotFoundError:
        pass
    raise RunError(f"{folder} was removed while this training wrote to it: start again")


def claim(folder: Path, requested: Path | None, resumed: Path | None) -> None:
    """Check that the locked folder is free for a new run, or holds the run to resume.

    A checkpoint of another name is a copy: continuing from it would replace what was trained since.

    Args:
        requested: the checkpoint that the user asked for, None for a new run.
        resumed: the checkpoint that was intact; it takes the place of a damaged one.

    Raises:
        RunError: the folder holds another run.
    """
    own = [(folder / name).resolve() for name in (LAST, PREVIOUS)]
    if requested is None or requested.resolve() not in own:
        if any((folder / name).exists() for name in (LAST, PREVIOUS, WEIGHTS)):
            raise RunError(f"{folder} already holds a run: resume it, or choose another --output")
    elif resumed is not None and resumed != requested:
        os.replace(resumed, folder / LAST)


def save_latest(folder: Path, content: dict[str, Any]) -> None:
    """Save the latest checkpoint of a run; the one before it is kept as PREVIOUS.

    Raises:
        RunError: it cannot be written, or the folder is no longer the one that was locked; the
            older checkpoint is then untouched.
    """
    _check_lock(folder)
    write_atomically(folder / LAST, serialize(content), keep_as=PREVIOUS)


def find_latest(folders: Iterable[Path]) -> Path | None:
    """The latest checkpoint in any of these run folders, or None."""
    found = [
        (path.stat().st_mtime, folder / LAST)
        for folder in folders
        for path in (folder / LAST, folder / PREVIOUS)
        if path.is_file()
    ]
    return max(found)[1] if found else None


def load_latest(path: Path) -> tuple[dict[str, Any], Path]:
    """The checkpoint to resume and its path; if the one at `path` is damaged, the one before it.

    Raises:
        RunError: there is none, or none is intact.
        UnreadableError: the system cannot read the file now but may later, so the older one must
            not take its place.
    """
    older = path.with_name(PREVIOUS)
    try:
        return load_checkpoint(path), path
    except UnreadableError:
        raise
    except RunError:
        if path.name != LAST or not older.exists():
            raise
        return load_checkpoint(older), older

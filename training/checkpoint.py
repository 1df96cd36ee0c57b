"""Checkpoint files: written whole, read warily, and one writer to the folder of a run."""

import hashlib
import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from utils import HISTORY_COLUMNS, RunError, make_folder, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

FORMAT = 1  # of a checkpoint; a change that this module could not read any more counts it up
LAST, PREVIOUS = "last.pt", "previous.pt"  # a run's newest checkpoint, and the one before it
LOCK = ".lock"
CLASSES = 10  # of CIFAR-10, and of every network here

# What a file may ask of a reader: far more than any network here needs, and refused before memory
# or time is spent on it.
MAX_BYTES = 128 * 2**20  # of the file, of its unpacked entries, and of its tensors
MAX_PICKLE_BYTES = 2 * 2**20  # of the structure, which takes some 100 kB
MAX_ENTRIES = 10_000  # of the archive
MAX_NODES = 200_000  # dicts, lists and values
MAX_DEPTH = 20
MAX_CONFIG_NUMBER = 4096  # a width or depth in a network's config
STORAGES = ("Bool", "Byte", "Int", "Long", "Half", "BFloat16", "Float", "Double")
PICKLE_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in STORAGES),
}


# ------------------------------------------------------------------------- the folder of a run


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
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


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


# -------------------------------------------------------------------------------- nested content


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, string and tensor in nested dicts and lists, with the keys that lead to it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key!r}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{path}/{index}")
    else:
        yield path, tree


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 over the keys, types, shapes and values of a checkpoint, without its checksum."""
    digest = hashlib.sha256()
    for path, leaf in _leaves({k: v for k, v in content.items() if k != "checksum"}):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous()
            digest.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(flat.flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{path} {leaf!r}".encode())
    return digest.hexdigest()


class _Plain:
    """Copies what was loaded into dicts, lists, tuples, tensors that own their memory, and plain
    values; ValueError where it holds anything else, or more than a checkpoint can."""

    def __init__(self) -> None:
        self.nodes = 0
        self.bytes = 0

    def copy(self, tree: Any, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError("too large a structure")
        if isinstance(tree, dict):
            if not all(type(key) in (str, int) for key in tree):
                raise ValueError("a key that is neither a string nor a number")
            return {key: self.copy(value, depth + 1) for key, value in tree.items()}
        if type(tree) in (list, tuple):
            return type(tree)(self.copy(value, depth + 1) for value in tree)
        if type(tree) is Tensor:
            return self.tensor(tree)
        if tree is not None and type(tree) not in (bool, int, float, str):
            raise ValueError(f"a value of type {type(tree).__name__}")
        return tree

    def tensor(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        self.bytes += size
        if size > tensor.untyped_storage().nbytes() or self.bytes > MAX_BYTES:
            raise ValueError("a tensor that is larger than its file")
        return tensor.detach().clone()


def check_like(expected: Any, actual: Any, where: str = "training") -> None:
    """Compare nested dicts and lists in all but their numbers: keys, lengths, types, strings,
    booleans, the shapes and dtypes of tensors.

    Raises:
        ValueError: they differ, or `actual` holds a number that is not finite.
    """
    if isinstance(expected, dict):
        same = isinstance(actual, dict) and expected.keys() == actual.keys()
        pairs = [(key, expected[key], actual[key]) for key in expected] if same else []
    elif isinstance(expected, list | tuple):
        same = type(expected) is type(actual) and len(expected) == len(actual)
        pairs = list(zip(range(len(expected)), expected, actual, strict=True)) if same else []
    elif isinstance(expected, Tensor):
        same, pairs = isinstance(actual, Tensor) and _is_finite(actual), []
        same = same and (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        kinds = (int, float) if isinstance(expected, float) else (int,)
        same, pairs = type(actual) in kinds and _is_finite(actual), []
    else:
        same, pairs = type(expected) is type(actual) and expected == actual, []
    if not same:
        raise ValueError(f"{where} does not fit")
    for key, inner, other in pairs:
        check_like(inner, other, f"{where}/{key}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return abs(value) < (math.inf if isinstance(value, float) else 2**63)


# ------------------------------------------------------------------------------------ checkpoints


def _to_cpu(tree: Any) -> Any:
    """The same content with its tensors on the CPU, so that any machine can load it."""
    if isinstance(tree, dict):
        return {key: _to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_to_cpu(value) for value in tree)
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def _seal(content: dict[str, Any]) -> bytes:
    content = _to_cpu({"format": FORMAT, **content})
    buffer = io.BytesIO()
    torch.save({**content, "checksum": checksum(content)}, buffer)
    return buffer.getvalue()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save a dict of tensors, numbers, strings, lists and dicts, sealed with a checksum.

    Raises:
        RunError: it cannot be written; an older file at `path` is then untouched.
    """
    write_atomically(path, _seal(content))


def save_latest(folder: Path, content: dict[str, Any]) -> None:
    """Save the newest checkpoint of a run; the one that was there is kept as the previous one.

    Raises:
        RunError: it cannot be written; what was there is then untouched.
    """
    write_atomically(folder / LAST, _seal(content), keep_as=PREVIOUS)


def find_latest(folders: Iterable[Path]) -> Path | None:
    """Of all these folders of runs, the newest checkpoint to resume, or None."""
    found = [
        (path.stat().st_mtime, folder / LAST)
        for folder in folders
        for path in (folder / LAST, folder / PREVIOUS)
        if path.is_file()
    ]
    return max(found)[1] if found else None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, onto the CPU, running no code from the file.

    What is returned is safe to work with: its fields are there, of the right types, its tensors
    finite and no larger than the file.

    Raises:
        RunError: there is no such file, it is damaged, or it is no checkpoint of ours.
    """
    archive = _read(path)
    try:
        _check_archive(archive)
        loaded = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        content = _Plain().copy(loaded)
    except Exception as error:  # whatever a damaged archive or pickle makes its readers raise
        raise RunError(f"{path} is damaged or is not a checkpoint of this repository") from error
    if not isinstance(content, dict) or "checksum" not in content or "format" not in content:
        raise RunError(f"{path} is not a checkpoint of this repository")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise RunError(
            f"{path} has format {content['format']!r:.20}, this version reads {FORMAT}: load it"
            " with the version that wrote it, or train anew"
        )
    if type(content["checksum"]) is not str or content["checksum"] != checksum(content):
        raise RunError(f"{path} is damaged: its checksum does not match; use another copy")
    for name, valid in _FIELDS.items():
        if not valid(content.get(name)):
            raise RunError(f"{path} is damaged: its {name} makes no sense; use another copy")
    return content


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is not a file: name a checkpoint")
        if path.stat().st_size > MAX_BYTES:
            raise RunError(
                f"{path} is larger than {MAX_BYTES:,} bytes: it is no checkpoint of ours"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"no checkpoint at {path}") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def _check_archive(content: bytes) -> None:
    """What torch.load does not look at: sizes before they are allocated, the archive's own
    checksums, and that its pickle names nothing but tensors. ValueError where it is none of ours.
    """
    if content.count(b"PK\1\2") > MAX_ENTRIES:  # the mark of an entry in the table of contents
        raise ValueError("too many entries")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed entry")  # torch.save writes none
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError("entries larger than the file")
        if archive.testzip() is not None:
            raise ValueError("an entry's checksum does not match")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError("not one small pickle")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            stranger = opcode.name == "GLOBAL" and argument not in PICKLE_NAMES
            if stranger or opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ"):
                raise ValueError(f"the pickle names {argument}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_small(value: Any) -> bool:
    """What a network's config may hold: no number that asks for gigabytes."""
    if isinstance(value, list | tuple):
        return all(_is_small(item) for item in value)
    if isinstance(value, int | float):
        return abs(value) <= MAX_CONFIG_NUMBER
    return value is None or _is_text(value)


def _is_normalization(value: Any) -> bool:
    """Mean and standard deviation of pixels in [0, 1], a channel each."""

    def are_floats(numbers: Any) -> bool:
        of_floats = isinstance(numbers, list) and all(type(x) is float for x in numbers)
        return of_floats and len(numbers) == 3 and all(0 <= x <= 1 for x in numbers)

    return (
        isinstance(value, dict)
        and are_floats(value.get("mean"))
        and are_floats(value.get("std"))
        and min(value["std"]) > 1e-3
    )


def _is_history(value: Any) -> bool:
    """Rows of the epochs 1, 2, ..., each with all columns: numbers, or None in the eval_ ones."""

    def is_number(value: Any, column: str) -> bool:
        if value is None:
            return column.startswith("eval_")
        return type(value) in (int, float) and 0 <= value < 1e15

    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == set(HISTORY_COLUMNS)
        and all(is_number(row[column], column) for column in HISTORY_COLUMNS)
        and row["epoch"] == epoch
        for epoch, row in enumerate(value, start=1)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "config": lambda value: isinstance(value, dict) and all(map(_is_small, value.values())),
    "state_dict": lambda value: (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(t, Tensor) and _is_finite(t) for t in value.values())
    ),
    "normalization": _is_normalization,
    "classes": lambda value: (
        isinstance(value, list) and len(value) == CLASSES and all(map(_is_text, value))
    ),
    "data": lambda value: (
        isinstance(value, dict)
        and value.keys() >= {"source", "train_split", "eval_split"}
        and all(map(_is_text, value.values()))
    ),
    "epoch": _is_count,
    "history": _is_history,
}


def rebuild(build: Callable[..., nn.Module], content: dict[str, Any], path: Path) -> nn.Module:
    """The network that the checkpoint loaded from `path` describes, with its weights, on the CPU.

    It is built without memory first, so that no config can ask for more than the file holds.

    Args:
        build: makes a network from `content`'s "model" and "config", such as models.build.

    Raises:
        RunError: no such network can be built, or the weights belong to another one.
    """
    try:
        with torch.device("meta"):
            model = build(content["model"], **content["config"])
        check_like(model.state_dict(), content["state_dict"], "state_dict")
        model.load_state_dict(content["state_dict"], assign=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())
        raise RunError(f"{path} holds weights of another network: {reason:.200}") from e
    return model

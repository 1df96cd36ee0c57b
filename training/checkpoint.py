"""Checkpoints: safetensors files whose content is checked for meaning, and one writer a folder.

A tensor lies in the file under the keys that lead to it, such as "state_dict/fc.weight". All else
is JSON in the file's metadata, and a SHA-256 covers both. A file of this format holds no code.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from utils import HISTORY_COLUMNS, RunError, make_folder, remove_leftovers, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

VERSION = "2"  # of the content; a change that this module could not read any more counts it up
LAST, PREVIOUS = "last.safetensors", "previous.safetensors"  # a run's newest, and the one before
LOCK = ".lock"
CLASSES = 10  # of CIFAR-10, and of every network here

# What a file may ask of a reader: far more than any network here needs, and refused before memory
# or time is spent on it.
MAX_BYTES = 128 * 2**20
MAX_HEADER_BYTES = 2**20  # names and shapes of the tensors, and the JSON
MAX_TENSORS = 5_000
MAX_CONFIG_NUMBER = 4096  # a width or depth in a network's config

TENSOR = "tensor"  # the one key of the JSON object that stands for a tensor, beside its name
DAMAGED = (
    *(SafetensorError, OSError, ArithmeticError, AttributeError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)


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
        remove_leftovers(folder)
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
        same = isinstance(actual, list | tuple) and len(expected) == len(actual)
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


def encode(content: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Nested dicts and lists as JSON, and their tensors, by the keys that lead to them."""
    tensors: dict[str, Tensor] = {}

    def walk(tree: Any, name: str) -> Any:
        if isinstance(tree, dict):
            return {str(key): walk(value, f"{name}/{key}") for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [walk(value, f"{name}/{index}") for index, value in enumerate(tree)]
        if not isinstance(tree, Tensor):
            return tree
        name = name.removeprefix("/")
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}

    return json.dumps(walk(content, "")), tensors


def decode(text: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What `encode` made both of, but for tuples, which are lists now.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: nothing did.
    """
    left = dict(tensors)

    def object_hook(found: dict[str, Any]) -> Any:
        if found.keys() == {TENSOR}:
            return left.pop(found[TENSOR])
        return {int(key) if key.isdecimal() else key: value for key, value in found.items()}

    content = json.loads(text, object_hook=object_hook)
    if left or not isinstance(content, dict):
        raise ValueError("a tensor that is not part of the content")
    return content


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the JSON and over names, types, shapes and values of the tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seal(content: dict[str, Any]) -> bytes:
    text, tensors = encode(content)
    metadata = {"version": VERSION, "content": text, "sha256": checksum(text, tensors)}
    return safetensors.torch.save(tensors, metadata)


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
    """Load what `save_checkpoint` wrote, onto the CPU.

    What is returned is safe to work with: its fields are there, of the right types, its tensors
    finite and no larger than the file.

    Raises:
        RunError: there is no such file, it is damaged, or it is no checkpoint of ours.
    """
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:  # checks sizes and places of all tensors
            metadata = file.metadata() or {}
            # Copies, for the file may be replaced while the content is in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except DAMAGED as error:
        raise RunError(f"{path} is damaged or is not a checkpoint of this repository") from error
    if not metadata.keys() >= {"version", "content", "sha256"}:
        raise RunError(f"{path} is not a checkpoint of this repository")
    if metadata["version"] != VERSION:
        raise RunError(
            f"{path} has version {metadata['version']!r:.20}, this code reads {VERSION}: load it"
            " with the code that wrote it, or train anew"
        )
    if metadata["sha256"] != checksum(metadata["content"], tensors):
        raise RunError(f"{path} is damaged: its checksum does not match; use another copy")
    try:
        content = decode(metadata["content"], tensors)
    except DAMAGED as error:
        raise RunError(f"{path} is damaged: its content makes no sense") from error
    for name, valid in _FIELDS.items():
        if not valid(content.get(name)):
            raise RunError(f"{path} is damaged: its {name} makes no sense; use another copy")
    return content


def _check_header(path: Path) -> None:
    """RunError where the file is not there, is too large, or has a header that takes long to read:
    tens of thousands of tensors take seconds."""
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is not a file: name a checkpoint")
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, MAX_HEADER_BYTES))
    except FileNotFoundError as error:
        raise RunError(f"no checkpoint at {path}") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if size > MAX_BYTES:
        raise RunError(f"{path} is larger than {MAX_BYTES:,} bytes: it is no checkpoint of ours")
    if length.to_bytes(8, "little").startswith(b"PK"):
        raise RunError(
            f"{path} is no safetensors file, but a .pt file: load it with the code that wrote it"
        )
    if length > MAX_HEADER_BYTES or header.count(b'"dtype"') > MAX_TENSORS:
        raise RunError(f"{path} is damaged or is not a checkpoint of this repository")


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
        with torch.device("meta"), _no_more_parameters_than(2 * len(content["state_dict"])):
            model = build(content["model"], **content["config"])
        check_like(model.state_dict(), content["state_dict"], "state_dict")
        model.load_state_dict(content["state_dict"], assign=True)
    except DAMAGED as e:
        reason = " ".join(str(e).split())
        raise RunError(f"{path} holds weights of another network: {reason:.200}") from e
    return model


@contextmanager
def _no_more_parameters_than(count: int) -> Iterator[None]:
    """ValueError as soon as a network that is being built has more, however deep it would be."""
    left = count

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it has more layers than the file has weights")

    with register_module_parameter_registration_hook(hook):
        yield

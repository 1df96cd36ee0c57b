"""Checkpoints: safetensors files whose content is validated (checkpoint_content.py).

A tensor is stored under its path of keys, such as "state_dict/fc.weight". Everything else is JSON
in the file's metadata, and a SHA-256 covers both. The format cannot hold code.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

import models
from training.checkpoint_content import MALFORMED, check_like, first_fault
from utils import RunError, write_atomically

VERSION = "2"  # of the content; raised by every change that this module could not read

# Limits of a file, far above what any network here needs. They are checked before memory or time
# is spent on reading it, and before it is written.
MAX_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20  # names and shapes of the tensors, and the JSON
MAX_TENSORS = 5_000

TENSOR = "tensor"  # the only key of the JSON object that stands for a tensor; its value: the name


class UnreadableError(RunError):
    """The system cannot read a file that is there; what is in it may be intact."""


def encode(content: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Nested dicts and lists as JSON, and their tensors by path of keys."""
    tensors: dict[str, Tensor] = {}
    return json.dumps(_lift(content, "", tensors)), tensors


def _lift(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What stands for `tree` in the JSON; its tensors go into `tensors`.

    Not nested in `encode`: a nested function that calls itself is a reference cycle, which would
    keep the tensors of every checkpoint in memory until the garbage collector runs.
    """
    if isinstance(tree, dict):
        return {str(key): _lift(value, f"{name}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_lift(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
    if not isinstance(tree, Tensor):
        return tree
    name = name.removeprefix("/")
    tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
    return {TENSOR: name}


def decode(text: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `encode`, except that tuples become lists.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: this is not what `encode` makes.
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
    """SHA-256 of the JSON and of the names, types, shapes and values of the tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def serialize(content: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint of `content`: a dict of tensors, numbers, strings, lists, dicts.

    Raises:
        RunError: they are more than `load_checkpoint` reads.
    """
    text, tensors = encode(content)
    metadata = {"version": VERSION, "content": text, "sha256": checksum(text, tensors)}
    written = safetensors.torch.save(tensors, metadata)
    header = int.from_bytes(written[:8], "little")
    if len(written) > MAX_BYTES or header > MAX_HEADER_BYTES or len(tensors) > MAX_TENSORS:
        raise RunError(
            f"the network is too large for a checkpoint, which may have {MAX_BYTES:,} bytes and"
            f" {MAX_TENSORS:,} tensors: choose a smaller one"
        )
    return written


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save a dict of tensors, numbers, strings, lists and dicts, with a checksum.

    Raises:
        RunError: it is too large or cannot be written; an older file at `path` is then untouched.
    """
    write_atomically(path, serialize(content))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, onto the CPU.

    The result is validated: it has all fields, of the right types, and its tensors are finite and
    no larger than the file.

    Raises:
        RunError: the file is missing, damaged or not a checkpoint of this repository.
        UnreadableError: the system cannot read it.
    """
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:  # checks sizes and places of all tensors
            metadata = file.metadata() or {}
            # Copies, for the file may be replaced while the content is in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, *MALFORMED) as error:
        raise RunError(f"{path} is damaged or is not a checkpoint of this repository") from error
    if not metadata.keys() >= {"version", "content", "sha256"}:
        raise RunError(f"{path} is not a checkpoint of this repository")
    if metadata["version"] != VERSION:
        raise RunError(
            f"{path} has version {metadata['version']!r:.20}, but this code reads {VERSION}: load"
            " it with the code that wrote it, or retrain"
        )
    if metadata["sha256"] != checksum(metadata["content"], tensors):
        raise RunError(f"{path} is damaged: its checksum does not match; use another copy")
    try:
        content = decode(metadata["content"], tensors)
        fault = first_fault(content)
    except MALFORMED as error:
        raise RunError(f"{path} is damaged: its content is invalid") from error
    if fault is not None:
        raise RunError(f"{path} is damaged: its {fault} is invalid; use another copy")
    return content


def _check_header(path: Path) -> None:
    """RunError if the file is missing, too large, or has a header that is slow to read: tens of
    thousands of tensors take seconds."""
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
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
    if size > MAX_BYTES:
        raise RunError(
            f"{path} is larger than {MAX_BYTES:,} bytes: it is not a checkpoint of this repository"
        )
    if length.to_bytes(8, "little").startswith(b"PK"):
        raise RunError(
            f"{path} is a .pt file, not a safetensors file: load it with the code that wrote it"
        )
    if length > MAX_HEADER_BYTES or header.count(b'"dtype"') > MAX_TENSORS:
        raise RunError(f"{path} is damaged or is not a checkpoint of this repository")


def rebuild(content: dict[str, Any], path: Path) -> nn.Module:
    """The network that the checkpoint loaded from `path` describes, with its weights, on the CPU.

    A config that is too large for the weights is refused before it takes memory. Leaves the random
    state unchanged.

    Raises:
        RunError: no such network can be built, or the weights are those of another one.
    """
    try:
        state = {name: _full_precision(tensor) for name, tensor in content["state_dict"].items()}
        with (
            torch.device("cpu"),
            torch.random.fork_rng(devices=[]),
            _no_larger_than(state),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of a damaged config, which is then refused
            model = models.build(content["model"], **content["config"])
        check_like(model.state_dict(), state, "state_dict")
        model.load_state_dict(state)
    except MALFORMED as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} holds weights of another network: {reason:.200}") from error
    return model


def _full_precision(tensor: Tensor) -> Tensor:
    """Released weights may be stored in float16, which halves the file: the network computes with
    them in float32."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


@contextmanager
def _no_larger_than(state: dict[str, Tensor]) -> Iterator[None]:
    """ValueError as soon as the network being built is much larger than its weights in `state`.

    A constructor may make more than it keeps: a mirrored pointwise layer makes five times its
    numbers. Another may slice small kernels out of large ones, so 64 MB are always allowed.
    """
    kept = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    parameters, numbers = 2 * len(state), max(2**24, 6 * kept)

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters, numbers
        parameters -= 1
        if parameter is not None and not is_lazy(parameter):
            numbers -= parameter.numel()
        if parameters < 0 or numbers < 0:
            raise ValueError("it is larger than the file's weights")

    with register_module_parameter_registration_hook(hook):
        yield

"""The teacher of a training: trained networks whose probabilities another network learns from."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import utils
from models.mirror import untied
from training.weights import load_network


@dataclass(frozen=True)
class TeacherFile:
    """A teacher's checkpoint and its SHA-256, by which a resumed run recognises it."""

    path: str
    sha256: str


class Teacher:
    """Trained networks that share each batch: each one predicts its own part of the images.

    Every epoch shuffles the images, so over the epochs an image meets all the networks. The loss is
    linear in the teacher's probabilities, so on average the student learns the mean of the
    networks, at the cost of one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K), in the precision that the caller trains in."""
        parts = images.tensor_split(len(self.networks))
        # With fewer images than networks, some networks get none.
        pairs = zip(self.networks, parts, strict=True)
        return torch.cat([network(part) for network, part in pairs if len(part)])


def load_teacher(files: Sequence[TeacherFile], device: torch.device) -> Teacher | None:
    """The teacher that consists of these files, or None if there are none.

    Raises:
        utils.RunError: a file is missing or has changed.
    """
    networks = []
    for file in files:
        try:
            network, _ = _load(Path(file.path))
        except utils.RunError as error:
            raise utils.RunError(
                f"{error}; if it has moved, name its new path with --teacher"
            ) from error
        if _digest(Path(file.path)) != file.sha256:
            raise utils.RunError(
                f"{file.path} is not the teacher that the run began with: name that file with"
                f" --teacher (SHA-256 {file.sha256})"
            )
        network = untied(network).requires_grad_(False)
        networks.append(network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    return Teacher(networks) if networks else None


def find_teachers(paths: Sequence[Path], eval_split: str) -> tuple[TeacherFile, ...]:
    """The teacher files at `paths`; warns on standard error of one trained on `eval_split`.

    Raises:
        utils.RunError: a file is missing, or its network cannot be a teacher here.
    """
    for path in paths:
        _, checkpoint = _load(path)
        if eval_split in checkpoint["data"]["train_split"].split("+"):
            line = f"--teacher {path} was trained on {eval_split}: scores on it will be too high"
            print(utils.clean(line), file=sys.stderr)
    return tuple(TeacherFile(str(path), _digest(path)) for path in paths)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network at `path` and its checkpoint, whose classes and normalisation are CIFAR-10's."""
    try:
        network, checkpoint = load_network(path)
    except utils.RunError as error:
        raise utils.RunError(f"--teacher: {error}") from error
    normalization = {"mean": list(data.MEAN), "std": list(data.STD)}
    for name, expected in (("classes", list(data.CLASSES)), ("normalization", normalization)):
        if checkpoint[name] != expected:
            raise utils.RunError(f"--teacher: the {name} of {path} must be those of CIFAR-10")
    return network, checkpoint


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""The teachers of a training: networks with weights, whose answers another network learns from."""

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
    """A teacher's checkpoint, and the SHA-256 of it, by which a resumed run knows it again."""

    path: str
    sha256: str


class Teacher:
    """Trained networks that share the work: each answers for its own part of the batch.

    The order of the images is drawn anew in every epoch, so an image meets all of them in time, and
    the loss is linear in a teacher's probabilities: what the student learns on average is the mean
    of the networks, at the cost of one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K), in the precision that the caller trains in."""
        parts = images.tensor_split(len(self.networks))
        # A batch of fewer images than there are networks leaves some of them without one.
        pairs = zip(self.networks, parts, strict=True)
        return torch.cat([network(part) for network, part in pairs if len(part)])


def load_teacher(files: Sequence[TeacherFile], device: torch.device) -> Teacher | None:
    """The teacher that these files make, or None without any.

    Raises:
        utils.RunError: a file is not there any more, or is another one now.
    """
    networks = []
    for file in files:
        try:
            network, _ = _load(Path(file.path))
        except utils.RunError as error:
            raise utils.RunError(f"{error}; if it has moved, name its place") from error
        if _digest(Path(file.path)) != file.sha256:
            raise utils.RunError(
                f"{file.path} is another file than the teacher that the run began with: name that"
                f" with --teacher (SHA-256 {file.sha256})"
            )
        network = untied(network).requires_grad_(False)
        networks.append(network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    return Teacher(networks) if networks else None


def find_teachers(paths: Sequence[Path], eval_split: str) -> tuple[TeacherFile, ...]:
    """The files at `paths`. Says on standard error which were trained on images of `eval_split`.

    Raises:
        utils.RunError: one is not there, or holds no network that can teach.
    """
    for path in paths:
        _, checkpoint = _load(path)
        if eval_split in checkpoint["data"]["train_split"].split("+"):
            line = f"--teacher {path} was trained on {eval_split}: scores on it will flatter"
            print(utils.clean(line), file=sys.stderr)
    return tuple(TeacherFile(str(path), _digest(path)) for path in paths)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network at `path`, and its checkpoint, which has the classes and pixels of this code."""
    try:
        network, checkpoint = load_network(path)
    except utils.RunError as error:
        raise utils.RunError(f"--teacher: {error}") from error
    normalization = {"mean": list(data.MEAN), "std": list(data.STD)}
    for name, expected in (("classes", list(data.CLASSES)), ("normalization", normalization)):
        if checkpoint[name] != expected:
            raise utils.RunError(f"--teacher: {path} has other {name} than CIFAR-10 here")
    return network, checkpoint


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

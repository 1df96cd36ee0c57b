"""What the commands that use weights share: the flags for weights and images, loading a network,
and the warnings about its results."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import models
import utils
from models import explain
from training import checkpoint as checkpoints
from training.flags import Setting, add_flag, file, folder, url

SOURCE = Setting("auto: the sample if the weights were trained on it, else CIFAR-10", data.SOURCES)


def add_checkpoint(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The flag --checkpoint, by default the released weights."""
    parser.add_argument(
        "--checkpoint",
        type=file,
        metavar="PATH",
        required=required,
        default=models.RELEASED_WEIGHTS,
        help="weights to load" + ("" if required else " (the released ones)"),
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flags --data, --data-dir and --download-url."""
    add_flag(parser, "data", SOURCE, "auto")
    add_data_dir(parser)


def add_data_dir(group: argparse._ActionsContainer) -> None:
    """The flags --data-dir and --download-url."""
    add = group.add_argument
    add(
        "--data-dir",
        type=folder,
        metavar="DIR",
        default=group.argument_default or data.DEFAULT_DIRECTORY,  # as in add_flag
        help="folder of CIFAR-10; downloaded there if missing (data/raw)",
    )
    add("--download-url", type=url, metavar="URL", help="mirror of cifar-10-python.tar.gz")


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the checkpoint at `path` in evaluation mode, on the CPU, and the checkpoint.

    Raises:
        utils.RunError: there is no checkpoint, or it is damaged or of another network.
    """
    checkpoint = checkpoints.load_checkpoint(path)
    return checkpoints.rebuild(checkpoint, path).eval(), checkpoint


class PixelClassifier(nn.Module):
    """A network with its normalisation: uint8 pixels (N, 3, 32, 32) -> logits (N, K), and with
    `maps` also its class activation maps (N, K, H, W)."""

    network: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        maps: bool = False,
    ) -> None:
        super().__init__()
        needed = ("forward_features", "forward_head", "fc")
        if maps and not all(hasattr(network, name) for name in needed):
            raise utils.RunError(f"class activation maps need a network with {', '.join(needed)}")
        self.network = network
        self.maps = maps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = data.normalize(pixels, self.mean, self.std)
        if not self.maps:
            return self.network(images)
        features = self.network.forward_features(images)
        maps = explain.class_activation_maps(self.network.fc, features)
        return self.network.forward_head(features), maps


@dataclass(frozen=True)
class WeightsFile:
    """A checkpoint that a training uses, the SHA-256 by which it recognises the file, and what the
    weights in it were trained on."""

    path: str
    sha256: str
    source: str = ""
    train_split: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether `path` is its path, or holds a copy of it."""
        return str(path) == self.path or (path.is_file() and _digest(path) == self.sha256)


def find_weights(paths: Sequence[Path], flag: str, eval_split: str) -> tuple[WeightsFile, ...]:
    """The checkpoints that the user named with `flag`, for a training that is scored on
    `eval_split`; warns on standard error of one that was trained on it.

    Raises:
        utils.RunError: a file is missing, or its network is not one for CIFAR-10.
    """
    files = []
    for path in paths:
        _, checkpoint = load_for_cifar10(path, flag)
        trained = checkpoint["data"]
        if _trained_on(trained, eval_split):
            line = f"{flag} {path} was trained on {eval_split}: scores on it will be too high"
            print(utils.clean(line), file=sys.stderr)
        seen = trained["source"], trained["train_split"]
        files.append(WeightsFile(str(path), _digest(path), *seen))
    return tuple(files)


def load_again(file: WeightsFile, flag: str) -> nn.Module:
    """The network of a file that find_weights found.

    Raises:
        utils.RunError: the file is missing or has changed.
    """
    path = Path(file.path)
    try:
        network, _ = load_for_cifar10(path, flag)
    except utils.RunError as error:
        raise utils.RunError(f"{error}; if it has moved, name its new path with {flag}") from error
    if _digest(path) != file.sha256:
        raise utils.RunError(
            f"{path} is not the file that the run began with: name that one with {flag}"
            f" (SHA-256 {file.sha256})"
        )
    return network


def load_for_cifar10(path: Path, flag: str) -> tuple[nn.Module, dict[str, Any]]:
    """As load_network, for a path that the user named with `flag`; classes and normalisation must
    be those of CIFAR-10.

    Raises:
        utils.RunError: they are not, or the file is missing, damaged or of another network.
    """
    try:
        network, checkpoint = load_network(path)
    except utils.RunError as error:
        raise utils.RunError(f"{flag}: {error}") from error
    expected = {"classes": list(data.CLASSES), "normalization": data.NORMALIZATION}
    for name, value in expected.items():
        if checkpoint[name] != value:
            raise utils.RunError(f"{flag}: the {name} of {path} must be those of CIFAR-10")
    return network, checkpoint


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def title(model: str, trained: dict[str, Any]) -> str:
    """The first words of a figure's title: the network and, by a checkpoint's "data", whether it
    knows the built-in sample only."""
    only = ", trained on the built-in sample only" if trained["source"] == "sample" else ""
    return f"{model} on CIFAR-10{only}"


def choose_source(asked: str, trained: dict[str, Any]) -> str:
    """The source to use, "cifar10" or "sample", by the value of --data and a checkpoint's "data".

    Missing data is never replaced: scores on the sample would mislead.
    """
    if asked != "auto":
        return asked
    return "sample" if trained["source"] == "sample" else "cifar10"


def seen_in_training(trained: dict[str, Any], split: data.Split) -> str:
    """A warning if the network was trained on images of `split`, else "".

    The sample's splits are parts of CIFAR-10's splits of the same name.
    """
    if not _trained_on(trained, split.name):
        return ""
    some = "some of " if trained["source"] == "sample" and split.source == "cifar10" else ""
    return f"The network was trained on {some}these images: expect lower scores on new ones."


def _trained_on(trained: dict[str, Any], split: str) -> bool:
    """Whether a checkpoint's "data" says so of the split of this name."""
    return split in trained["train_split"].split("+")


def require_finite(results: Tensor, path: Path) -> None:
    """Raises utils.RunError if a network's results are not all finite."""
    if not results.isfinite().all():
        raise utils.RunError(
            f"the weights in {path} give infinite or NaN results: use another checkpoint"
        )

"""A one-second training of a tiny network on a few images, and its expected result."""

import csv
import itertools
import time
from pathlib import Path

from torch import nn

import models
import utils
from models.baseline import BaselineConfig
from stress.life import Calls, Life, Prepare, digest, hurry
from training import checkpoint as checkpoints
from training import devices, run_folder

IMAGES = 40  # for training and for scoring: batches of 16, 16 and 8
FLAGS = [
    *"--model baseline --data sample --device cpu --precision fp32 --epochs 3".split(),
    *"--batch-size 16 --ema-decay 0.9 --checkpoint-minutes 0 --resume auto".split(),
]
_numbers = itertools.count()


class Tiny(nn.Sequential):
    """Images (N, 3, 32, 32) -> logits (N, 10). It has everything that a checkpoint must keep:
    weights, running statistics and dropout's random state."""

    def __init__(self, config: BaselineConfig) -> None:
        head = (nn.Flatten(), nn.Linear(48, 10))
        super().__init__(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Dropout(0.1), *head)


def small_run(
    folder: Path,
    *flags: str,
    prepare: Prepare = lambda: None,
    processes: int = 1,
    images: int = IMAGES,
) -> Life:
    """Start or continue a training of Tiny, in the baseline's place, on a few images."""

    def begin() -> None:
        hurry(images)
        models._NETWORKS["baseline"] = (Tiny, BaselineConfig)
        devices.take_tiny_step = lambda *arguments: 0.0  # fp32 works, and the proof takes time
        prepare()

    arguments = [*FLAGS, *flags, "--output", str(folder)]
    printed = folder.with_name(f"{folder.name} printed {next(_numbers)}")
    return Life("train.py", arguments, printed, begin, processes)


def position(folder: Path) -> tuple[int, int]:
    """(epochs, batches) of a run's newest checkpoint; (0, 0) if there is none.

    Raises:
        utils.RunError: a file is damaged, or the history has other epochs.
    """
    kept = [folder / name for name in (run_folder.LAST, run_folder.PREVIOUS)]
    loaded = [checkpoints.load_checkpoint(path) for path in kept if path.exists()]
    newest = max(((c["epoch"], c["training"]["batch"]) for c in loaded), default=(0, 0))
    if (folder / "weights.safetensors").exists():
        checkpoints.load_checkpoint(folder / "weights.safetensors")
    if (folder / "history.csv").exists():
        with open(folder / "history.csv", newline="") as file:
            epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
        if len(epochs) not in (newest[0], newest[0] - 1) or epochs != [*range(1, len(epochs) + 1)]:
            raise utils.RunError(f"history.csv has the epochs {epochs} at {newest}")
    return newest


class Undisturbed:
    """A small run in `folder` that nothing interrupts, and its result."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        begin, calls = time.monotonic(), Calls()
        life = small_run(folder, prepare=calls.watch, processes=processes)
        life.wait()
        if life.status != 0:
            raise RuntimeError(f"the training does not work: {life.err.read_text()[-2000:]}")
        self.seconds, self.calls = time.monotonic() - begin, calls.count
        self.result = result(folder)

    def equals(self, folder: Path) -> bool:
        """Whether another run has the same files, with the same weights and history in them."""
        return result(folder) == self.result


def result(folder: Path) -> tuple[list[str], str]:
    """The names of a finished run's files, and the digest of its weights and history."""
    content = checkpoints.load_checkpoint(folder / "weights.safetensors")
    return sorted(path.name for path in folder.iterdir()), digest(content)

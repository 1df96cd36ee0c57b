"""Kill a training at random moments, resume it each time, and compare where it ends.

    python -m stress.kill

Trains the baseline on the built-in sample with a checkpoint after every step, and ends it with
SIGKILL: every other time at any moment, in between just as a checkpoint is being written. After
each kill what is on disk must be whole and no older than before; then the same command goes on.
Every run that gets to its end must have the weights, bit for bit, of one that was never stopped.
Figures are blank. Needs a system that forks (Linux, macOS).
"""

import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import utils
from stress.life import Life, hurry
from training import checkpoint as checkpoints
from training import run_folder

RUN = "--model baseline --data sample --device cpu --precision fp32 --epochs 2".split()
EVERY_STEP = ["--checkpoint-minutes", "0", "--resume", "auto"]


@dataclass
class Tally:
    """What became of the kills."""

    kills: int = 0
    before_first: int = 0  # kills before there was a checkpoint
    while_writing: int = 0  # kills that left half a checkpoint behind, under a passing name
    finished: int = 0  # runs that got to their end
    equal: int = 0  # of these, those with the weights of the undisturbed run
    lost: int = 0  # kills after which a checkpoint was damaged, gone, or older than before

    @property
    def passed(self) -> bool:
        return self.lost == 0 and 0 < self.finished == self.equal

    def __str__(self) -> str:
        return (
            f"{self.kills - self.lost} kills survived of {self.kills}: {self.while_writing} while a"
            f" checkpoint was being written, {self.before_first} before the first one;"
            f" {self.equal} of {self.finished} runs ended with the weights of the undisturbed one"
        )


def half_written(folder: Path) -> bool:
    return any(folder.glob(f".{run_folder.LAST}.*.unfinished"))


def kill_at_random(life: Life, folder: Path, chance: random.Random, seconds: float) -> None:
    """Within `seconds`, or just as the next, second or third checkpoint is being written."""
    if chance.random() < 0.5:
        life.wait(seconds=chance.uniform(0.0, seconds))
    else:
        for _ in range(chance.randint(1, 3)):
            life.wait(lambda: not half_written(folder))
            life.wait(lambda: half_written(folder))
        life.wait(seconds=chance.uniform(0.0, 0.01))
    life.kill()


def position(folder: Path) -> tuple[int, int]:
    """(epochs, batches) of the newest checkpoint; (0, 0) where there is none, (-1, -1) where one
    of the two files is damaged."""
    kept = [folder / name for name in (run_folder.LAST, run_folder.PREVIOUS)]
    try:
        loaded = [checkpoints.load_checkpoint(path) for path in kept if path.exists()]
    except utils.RunError:
        return -1, -1
    return max(((c["epoch"], c["training"]["batch"]) for c in loaded), default=(0, 0))


def campaign(kills: int, images: int, batch_size: int, seed: int, folder: Path) -> Tally:
    """Kill trainings in `folder` until there were `kills` kills; the last one gets to its end."""
    chance, tally = random.Random(seed), Tally()
    command = [*RUN, "--batch-size", str(batch_size)]
    expected, seconds = undisturbed_run(command, images, folder)
    reached, run = (0, 0), folder / "0"
    while tally.kills < kills or tally.finished == 0 or reached > (0, 0):
        life = start([*command, *EVERY_STEP], images, run)
        if tally.kills < kills:
            kill_at_random(life, run, chance, seconds)
        life.wait()
        if life.status == 0:
            tally.finished += 1
            tally.equal += same(checkpoints.load_checkpoint(run / "weights.safetensors"), expected)
            reached, run = (0, 0), folder / str(tally.finished)
        elif life.status == -signal.SIGKILL:
            tally.kills += 1
            tally.while_writing += half_written(run)
            before, reached = reached, position(run)
            tally.before_first += reached == (0, 0)
            if reached < before:
                tally.lost += 1
                reached, run = (0, 0), folder / f"after-loss-{tally.lost}"
        else:
            raise RuntimeError(f"the training ended by itself: {life.err.read_text()[-2000:]}")
    return tally


def start(command: list[str], images: int, run: Path) -> Life:
    output = ["--output", str(run)]
    return Life("train.py", [*command, *output], run.with_suffix(".printed"), lambda: hurry(images))


def undisturbed_run(command: list[str], images: int, folder: Path) -> tuple[dict, float]:
    """The weights to compare with, and the seconds that they took."""
    begin = time.monotonic()
    life = start(command, images, folder / "undisturbed")
    life.wait()
    if life.status != 0:
        raise RuntimeError(f"the training does not work: {life.err.read_text()[-2000:]}")
    expected = checkpoints.load_checkpoint(folder / "undisturbed" / "weights.safetensors")
    return expected, time.monotonic() - begin


def same(one: dict, other: dict) -> bool:
    """Whether two checkpoints have the same weights and, but for the times, the same history."""
    timed = {"seconds", "images_per_second"}
    for row, expected in zip(one["history"], other["history"], strict=True):
        if any(row[column] != expected[column] for column in row.keys() - timed):
            return False
    weights = one["state_dict"]
    return all(torch.equal(weights[name], tensor) for name, tensor in other["state_dict"].items())


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kills", type=int, default=100, metavar="N", help="(100)")
    add("--images", type=int, default=2000, metavar="N", help="to train on (2000)")
    add("--batch-size", type=int, default=100, metavar="N", help="(100)")
    add("--seed", type=int, default=0, metavar="N", help="of the moments (0)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # before anything computes, so that the process can fork
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = campaign(
            arguments.kills, arguments.images, arguments.batch_size, arguments.seed, Path(folder)
        )
    print(f"{tally}; {time.monotonic() - begin:.0f} s")
    sys.exit(0 if tally.passed else 1)


if __name__ == "__main__":
    main()

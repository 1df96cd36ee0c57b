"""Train for 200,000 steps and check that nothing grows.

    python -m stress.endurance

A tiny network runs through the real training loop: 100 steps of two images per epoch, then an
evaluation and a checkpoint. Between the first and the last tenth of the epochs, the number of open
files, the processor time per step and memory must not grow, except for one history row per epoch.
Needs Linux (/proc).
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import utils
from stress.life import get_ready
from stress.small_run import small_run
from training import checkpoint as checkpoints
from training import run_folder
from training.flags import Setting, add_flag

BATCH, EPOCH = 2, 100  # images per step, steps per epoch
MEGABYTES, SLOWER = 8.0, 1.25  # allowed growth of memory, and of a step's time as a factor
TIMED = 50_000  # fewer steps are not judged by their time: noise would decide


@dataclass(frozen=True)
class Tenths:
    """The minimum of a measurement in the first and in the last tenth of the time. Minima ignore
    what comes and goes, such as a file that is being written, or other work on the machine."""

    first: float
    last: float

    @staticmethod
    def of(values: Sequence[float]) -> "Tenths":
        size = max(len(values) // 10, 1)
        return Tenths(min(values[:size]), min(values[-size:]))


def anonymous(process: Path) -> float:
    """Megabytes of anonymous memory of a process. File-backed pages, such as libraries, are left
    out because the kernel drops and reloads them at will."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError("it has ended")


def count_processor_time() -> None:
    """In the child: measure steps in processor time, so that other work does not count."""
    time.perf_counter = time.process_time


def train(epochs: int, folder: Path) -> tuple[Tenths, Tenths, Tenths]:
    """Megabytes, open files and milliseconds per step of a training of `epochs` epochs."""
    flags = f"--epochs {epochs} --batch-size {BATCH} --checkpoint-minutes 5"
    run = folder / "run"
    life = small_run(run, *flags.split(), images=BATCH * EPOCH, prepare=count_processor_time)
    process, history = Path(f"/proc/{life.pid}"), run / "history.csv"
    life.wait(history.exists)
    memory, files = [], []
    with tqdm(total=epochs * EPOCH, unit="step", mininterval=1) as bar:
        while life.goes_on():
            with suppress(OSError):  # it has just ended
                files.append(len(list((process / "fd").iterdir())))
                memory.append(anonymous(process))
            bar.update(history.read_bytes().count(b"\n") * EPOCH - EPOCH - bar.n)
            time.sleep(0.2)
    if life.status != 0:
        raise utils.RunError(f"the training ended by itself: {life.err.read_text()[-2000:]}")
    rows = checkpoints.load_checkpoint(run / run_folder.LAST)["history"]
    steps = [1000 * row["seconds"] / EPOCH for row in rows]
    return Tenths.of(memory), Tenths.of(files), Tenths.of(steps)


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add_flag(parser, "steps", Setting("in all", at_least=EPOCH), 200_000)
    arguments = parser.parse_args(argv)
    get_ready()
    with tempfile.TemporaryDirectory() as folder:
        memory, files, step = train(arguments.steps // EPOCH, Path(folder))
    print(
        f"memory {memory.first:.1f} -> {memory.last:.1f} MB, open files {files.first:g} ->"
        f" {files.last:g}, {step.first:.2f} -> {step.last:.2f} ms per step"
    )
    flat = memory.last - memory.first <= MEGABYTES and files.last <= files.first
    slower = step.last > SLOWER * step.first and arguments.steps >= TIMED
    sys.exit(0 if flat and not slower else 1)


if __name__ == "__main__":
    utils.run_script(main)

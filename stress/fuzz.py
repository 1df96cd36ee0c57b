"""Hold damaged and hostile files against what reads them.

    python -m stress.fuzz

Each mutant of a checkpoint, a history, a batch file, a label file or a sheet of the sample is
given to the scripts, in this process. It is to end in one line on standard error and exit status 2
(refused), or to be loaded and right: what comes of damage must be equal to what comes of the intact
file, and what comes of a well-formed checkpoint with other content must be a well-formed
checkpoint. A traceback, code that ran, more than 10 seconds and more than 2 GB are failures. The
same seed gives the same mutants.
"""

import functools
import hashlib
import importlib.util
import io
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data
import models
import train
import utils
from benchmarks import common
from data import cifar10, files
from stress import mutants
from training import checkpoint as checkpoints
from training import report, run_folder
from training.interruption import Interrupted, Interruption
from training.recipe import RecipeError

SECONDS = 10.0  # that a mutant may take
MEGABYTES = 2000  # of memory that it may take beyond what is in use before it
IMAGES = 40  # to train on and to score
RUN = "--model baseline --data sample --device cpu --precision fp32 --epochs 2".split()
STEPS = 5  # until the run is interrupted whose checkpoint is damaged: in its second epoch
ERRORS = (data.DataError, models.ModelError, RecipeError, OSError)


class TooLong(BaseException):
    """Not an Exception, so that nobody takes it for a fault of the file."""


class Wrong(Exception):
    """A mutant did what it must not."""


class Refused(Exception):
    """One line on standard error, and exit status 2."""


@dataclass
class Reader:
    """A file and what reads it.

    Attributes:
        kind: the row of the table that counts it.
        path: the file; a mutant lies there while `read` is called.
        mutations: what makes a mutant of it.
        read: raises Refused, or returns what is to be equal for the intact and a damaged file.
        share: of the mutants, beside those of the other readers.
    """

    kind: str
    path: Path
    mutations: tuple[mutants.Mutation, ...]
    read: Callable[[], Any]
    share: int
    intact: bytes = field(init=False)
    expected: Any = field(init=False)

    def __post_init__(self) -> None:
        self.intact = self.path.read_bytes()
        self.expected = self.read()

    def try_out(self, chance: random.Random, usage: "Usage") -> str:
        """The outcome of one mutant, "refused" or "right"; anything else is raised."""
        mutation = chance.choice(self.mutations)
        self.path.write_bytes(mutation(self.intact, chance))
        try:
            with usage.limited():
                result = self.read()
        except Refused:
            return "refused"
        finally:
            self.path.write_bytes(self.intact)
            if os.path.lexists(os.environ[mutants.MARKER]):
                raise Wrong(f"the code in a file ran ({mutation.__name__})")
        if mutation not in mutants.FORGERIES and result != self.expected:
            raise Wrong(f"damage went unnoticed ({mutation.__name__})")
        return "right"


@dataclass
class Usage:
    """The most that any mutant took so far."""

    seconds: float = 0.0
    megabytes: int = 0

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raises TooLong after SECONDS, and Wrong where memory grew by more than MEGABYTES."""
        in_use, begin = memory("VmRSS"), time.monotonic()
        if os.access("/proc/self/clear_refs", os.W_OK):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            grown = memory("VmHWM") - in_use
            self.seconds = max(self.seconds, time.monotonic() - begin)
            self.megabytes = max(self.megabytes, grown)
            if grown > MEGABYTES:
                raise Wrong(f"{grown} MB of memory")


def memory(entry: str) -> int:
    """Megabytes that this process has in use (VmRSS) or had at most (VmHWM); 0 but on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) // 1024 for line in lines if line.startswith(entry + ":"))


def run_script(main: Callable[[], Any]) -> Any:
    """What `main` returns, None where it is interrupted.

    Raises:
        Refused, or Wrong where it ends in a way in which no script should.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    results = []
    try:
        with redirect_stdout(out), redirect_stderr(err):
            utils.run_script(lambda: results.append(main()), *ERRORS)
    except SystemExit as end:
        said = err.buffer.getvalue().decode().splitlines()
        if end.code == 128 + signal.SIGTERM:
            return None
        if end.code == 2 and len(said) == 1 and ": error: " in said[0]:
            raise Refused(said[0]) from end
        raise Wrong(f"exit status {end.code}, and said {said}") from end
    return results[0]


@contextmanager
def interrupted_after(checks: int) -> Iterator[None]:
    """SIGTERM, as it were: the training asks for signals after each step."""
    original, remaining = Interruption.check, iter(range(checks - 1))

    def check(self: Interruption) -> None:
        if next(remaining, None) is None:
            raise Interrupted(signal.SIGTERM)

    Interruption.check = check
    try:
        yield
    finally:
        Interruption.check = original


# ------------------------------------------------------------------------------------ checkpoints


def shorten_scripts() -> None:
    """A few images, and nothing drawn or summed up."""
    load = data.load
    data.load = functools.cache(lambda *arguments: common.first(load(*arguments), IMAGES))
    train.draw = lambda *arguments: None
    train.draw_augmentation = lambda *arguments: None
    report.summary = lambda *arguments: ""


def digest(content: dict[str, Any]) -> str:
    """Of a checkpoint, without the times."""
    timed = {"seconds", "images_per_second"}
    rows = [{k: v for k, v in row.items() if k not in timed} for row in content["history"]]
    training = {**content["training"], "seconds": 0.0}
    content = {**content, "history": rows, "training": training}
    return checkpoints.checksum(*checkpoints.encode(content))


def resume(path: Path) -> str:
    """Go on from `path` for one step and its checkpoint; the digest of that."""
    output = path.parent / "resumed"
    shutil.rmtree(output, ignore_errors=True)
    flags = ["--resume", str(path), "--output", str(output), "--device", "cpu"]
    with interrupted_after(1):
        run_script(lambda: train.main(flags))
    return digest(checkpoints.load_checkpoint(output / run_folder.LAST))


def scorer() -> Callable[[Path], str]:
    """A function from weights to what test.py prints about them."""
    spec = importlib.util.spec_from_file_location("score", common.ROOT / "test.py")
    assert spec is not None and spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.draw = lambda *arguments: None

    def main(path: Path) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            script.main(["--checkpoint", str(path), "--output", str(path.parent / "scored")])
        return printed.getvalue()

    return lambda path: run_script(lambda: main(path))


def write_checkpoints(folder: Path) -> tuple[Path, Path]:
    """That of an interrupted run, and the weights of a finished one, each in its own folder."""
    flags = [*RUN, "--batch-size", "16", "--ema-decay", "0.9", "--output"]
    run_script(lambda: train.main([*flags, str(folder / "finished")]))
    with interrupted_after(STEPS):
        run_script(lambda: train.main([*flags, str(folder / "interrupted")]))
    (folder / "interrupted" / run_folder.PREVIOUS).unlink()  # or it would stand in for the other
    return folder / "interrupted" / run_folder.LAST, folder / "finished" / "weights.safetensors"


# ------------------------------------------------------------------------------------------- data


def read_data(source: str, directory: Path, split: str) -> str:
    """Find and load a split, as the scripts do; the digest of its images and labels."""

    def main() -> str:
        found = files.find(source, directory, need=(split,))
        loaded = cifar10.load(found, directory, split)
        return cifar10.content_md5(loaded.images, loaded.labels)

    return run_script(main)


def read_unchecked(directory: Path, split: str) -> str:
    """The same of the python version, as if its files had the official checksums."""
    check, files.check_integrity = files.check_integrity, lambda path, md5: True
    try:
        return read_data("cifar10", directory, split)
    finally:
        files.check_integrity = check


def write_cifar10(folder: Path) -> tuple[Path, Path]:
    """A small CIFAR-10 that from now on is taken for the real one; a folder a format."""
    cifar10.BATCH_SIZE, cifar10.VALIDATION_PER_CLASS = 20, 2
    binary, python = (
        folder / "binary" / files.BINARY_FOLDER,
        folder / "py" / files.PYTHON_FOLDER,
    )
    for path in (binary, python):
        path.mkdir(parents=True)
    numbers = np.random.RandomState(0)
    for table in (files.TRAIN_BATCHES, files.TEST_BATCHES):
        for batch in table:
            labels = numbers.permutation(np.arange(20, dtype=np.uint8) % 10)
            pixels = numbers.randint(0, 256, (20, cifar10.PIXELS), np.uint8)
            content = np.hstack([labels[:, None], pixels]).tobytes()
            pickled = pickle.dumps({b"labels": labels.tolist(), b"data": pixels}, protocol=2)
            table[batch] = hashlib.md5(content).hexdigest()
            files.PICKLES[batch] = hashlib.md5(pickled).hexdigest()
            (binary / f"{batch}.bin").write_bytes(content)
            (python / batch).write_bytes(pickled)
    return binary.parent, python.parent


# ----------------------------------------------------------------------------------------- the run


def readers(folder: Path) -> list[Reader]:
    """Everything that is read from files, with its files in `folder`."""
    shorten_scripts()
    last, weights = write_checkpoints(folder)
    score = scorer()
    binary, python = write_cifar10(folder)
    sample = folder / "sample"
    shutil.copytree(cifar10.SAMPLE_DIRECTORY, sample)
    cifar10.SAMPLE_DIRECTORY = sample
    contents = (*mutants.DAMAGES, *mutants.HEADERS, *[mutants.other_content] * 12)
    pickles = (*mutants.DAMAGES, mutants.bare_pickle)
    batch = python / files.PYTHON_FOLDER / "data_batch_1"

    def of(
        kind: str, path: Path, changes: tuple, share: int, read: Callable, *given: Any
    ) -> Reader:
        return Reader(kind, path, changes, functools.partial(read, *given), share)

    return [
        of("checkpoints, resumed", last, contents, 10, resume, last),
        of("checkpoints, scored", weights, contents, 5, score, weights),
        of("histories", last, (mutants.other_history,), 3, resume, last),
        of(
            "batch files",
            binary / files.BINARY_FOLDER / "data_batch_1.bin",
            mutants.DAMAGES,
            2,
            read_data,
            *("cifar10", binary, "train"),
        ),
        of("batch files", batch, pickles, 2, read_data, "cifar10", python, "train"),
        of("batch files", batch, pickles, 2, read_unchecked, python, "train"),
        of(
            "label files",
            sample / cifar10.SAMPLE_LABELS,
            (*mutants.DAMAGES, *[mutants.other_labels] * 12),
            3,
            read_data,
            *("sample", sample, "train+val"),
        ),
        of(
            "sample sheets",
            sample / "train_0.png",
            (*mutants.DAMAGES, *[mutants.other_sheet] * 7),
            3,
            read_data,
            *("sample", sample, "train"),
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mutants", type=int, default=2400, metavar="N", help="(2400)")
    add("--seed", type=int, default=0, metavar="N", help="of the mutants (0)")
    add("--only", type=int, metavar="N", help="try out just this one of them")
    arguments = parser.parse_args(argv)

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS:.0f} seconds")

    signal.signal(signal.SIGALRM, stop)
    torch.set_num_threads(1)
    usage, begin, failures = Usage(), time.monotonic(), 0
    counts: Counter[tuple[str, str]] = Counter()
    numbers = range(arguments.mutants) if arguments.only is None else [arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[mutants.MARKER] = str(Path(folder) / "code ran")
        everything = readers(Path(folder))
        for number in numbers:
            chance = random.Random(f"{arguments.seed} {number}")
            reader = chance.choices(everything, [r.share for r in everything])[0]
            try:
                outcome = reader.try_out(chance, usage)
            except (Exception, TooLong):
                outcome = "failures"
                print(f"mutant {number} of {reader.kind}:\n{traceback.format_exc()}", flush=True)
            counts[reader.kind, outcome] += 1
    for kind in dict.fromkeys(reader.kind for reader in everything):
        refused, right, failures = (counts[kind, o] for o in ("refused", "right", "failures"))
        print(f"{kind:<22}{refused:>6} refused {right:>6} loaded and right {failures:>4} failures")
    failures = sum(count for (_, outcome), count in counts.items() if outcome == "failures")
    print(
        f"{len(numbers) - failures} of {len(numbers)} mutants refused or right; the slowest took"
        f" {usage.seconds:.1f} s, the largest {usage.megabytes} MB;"
        f" {time.monotonic() - begin:.0f} s in all"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

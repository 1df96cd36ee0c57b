"""Fail every call of a training that changes the disk, one after the other.

    python -m stress.disk

The n-th call (opening to write, writing, syncing, renaming, removing, making a folder) fails, for
every n that the training gets to: with EIO, it alone, and with ENOSPC, as every later one does. The
training must end in one line on standard error and exit status 2, or go on to its end. What is on
the disk must be whole and no older than with an earlier failure, and the same command must get from
there to the files of an undisturbed run. The same holds with a clock that jumps, and for another
user without a home, who may not write to the checkout (where this user is root).
"""

import errno
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

import utils
from benchmarks import common
from stress.life import Calls, Life, Prepare, get_ready
from stress.small_run import Undisturbed, position, small_run

NOBODY = 65534


class Wrong(Exception):
    """A run ended as none should, or lost something."""


def fail(number: int, code: int) -> Calls:
    def act(count: int) -> None:
        if count == number or (code == errno.ENOSPC and count > number):
            raise OSError(code, os.strerror(code))

    return Calls(act)


def check_end(life: Life, undisturbed: Undisturbed, run: Path) -> bool:
    """Whether the run got to its end; Wrong where it ended neither there nor with one line."""
    life.wait()
    said = life.err.read_text()
    if life.status == 0 and undisturbed.equals(run):
        return True
    if life.status != 2 or len(said.splitlines()) != 1 or not said.startswith("train.py: error: "):
        raise Wrong(f"exit status {life.status}: {said[-2000:]}")
    return False


def go_on(undisturbed: Undisturbed, run: Path) -> None:
    if not check_end(small_run(run), undisturbed, run):
        raise Wrong("it does not go on where a failure left it")


def fail_in_turn(code: int, undisturbed: Undisturbed, folder: Path, every: int) -> tuple[int, int]:
    """Fail one call in `every`; returns how many failed, and how many runs that did not stop."""
    reached, ended = (0, 0), 0
    numbers = range(1, undisturbed.calls + 1, every)
    for number in tqdm(numbers, errno.errorcode[code], mininterval=1):
        run, calls = folder / "run", fail(number, code)
        try:
            if check_end(small_run(run, prepare=calls.watch), undisturbed, run):
                ended += 1
            else:
                before, reached = reached, position(run)
                if reached < before:
                    raise Wrong(f"{before} had been saved, and only {reached} is there")
            go_on(undisturbed, run)
        except (Wrong, utils.RunError) as error:
            raise Wrong(f"call {number} failed with {errno.errorcode[code]}: {error}") from error
        shutil.rmtree(run)
    return len(numbers), ended


def jump(seed: int) -> Prepare:
    """A clock that is put back and forth, and a computer that sleeps between two looks at it."""

    def prepare() -> None:
        chance, now = random.Random(seed), [0.0]

        def later() -> float:
            now[0] += chance.choice((1e-9, 1.0, 1e5))
            return now[0]

        time.time = lambda: chance.uniform(0, 4e9)
        time.monotonic = time.perf_counter = later

    return prepare


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ.pop("HOME", None)


def open_to_all(path: Path) -> bool:
    """Whether another user can get to a folder and read it."""
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def surroundings(seed: int) -> dict[str, Prepare]:
    prepared = {"a clock that jumps": jump(seed)}
    places = (common.ROOT, Path(sys.prefix), Path(tempfile.gettempdir()))
    if os.geteuid() == 0 and all(open_to_all(place.resolve()) for place in places):
        prepared["another user without a home"] = become_nobody
    return prepared


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one call in N (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the clock (0)")
    arguments = parser.parse_args(argv)
    get_ready()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        undisturbed = Undisturbed(folder / "undisturbed")
        for code in (errno.EIO, errno.ENOSPC):
            failed, ended = fail_in_turn(code, undisturbed, folder, arguments.every)
            print(f"{errno.errorcode[code]} at {failed} calls in turn: {ended} runs went on anyway")
        for what, prepare in surroundings(arguments.seed).items():
            run = folder / what
            if not check_end(small_run(run, prepare=prepare), undisturbed, run):
                raise Wrong(f"with {what} it did not get to its end")
            print(f"{what}: the same weights")
    print("Every run went on to the files of the undisturbed one")


if __name__ == "__main__":
    try:
        main()
    except Wrong as error:
        sys.exit(str(error))

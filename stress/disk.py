"""Let each disk-changing call of a training fail, one run per call.

    python -m stress.disk

The calls are opening for writing, writing, syncing, renaming, removing and making a folder. For
every n, the n-th call fails: once with EIO, alone, and once with ENOSPC, together with all later
calls. The training must either finish or exit with status 2 and one line on standard error. The
files on the disk must be intact and no older than after an earlier failure, and the same command
must then reach the files of an undisturbed run. The check is repeated with a clock that jumps and,
if run as root, as a user who has no home and cannot write to the checkout.
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
from training.flags import Setting, add_flag

NOBODY = 65534


class Wrong(Exception):
    """A run ended badly or lost something."""


def fail(number: int, code: int) -> Calls:
    def act(count: int) -> None:
        if count == number or (code == errno.ENOSPC and count > number):
            raise OSError(code, os.strerror(code))

    return Calls(act)


def check_end(life: Life, undisturbed: Undisturbed, run: Path) -> bool:
    """Whether the run finished. Raises Wrong if it neither finished nor failed with one line."""
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
    """Fail one call in `every`. Returns the failed calls, and the runs that finished anyway."""
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
    """A wall clock that jumps both ways, and a monotonic clock that leaps, as after a sleep."""

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
    """Whether any user can reach and read a folder."""
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def surroundings(seed: int) -> dict[str, Prepare]:
    prepared = {"a clock that jumps": jump(seed)}
    places = (common.ROOT, Path(sys.prefix), Path(tempfile.gettempdir()))
    if os.geteuid() == 0 and all(open_to_all(place.resolve()) for place in places):
        prepared["another user without a home"] = become_nobody
    return prepared


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add_flag(parser, "every", Setting("fail one call in N", at_least=1), 1)
    add_flag(parser, "seed", Setting("of the clock"), 0)
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
